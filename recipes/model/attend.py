"""What the decoder calls for attention: ``(layer, query, key, value) -> output``.

The decoder knows nothing of masks, caches or kernels; it is handed one of these functions.
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.model.config import AttentionSpec, ModelConfig

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query [num_tokens, num_heads, head_dim], key and value [num_tokens, num_kv_heads,
head_dim]) -> [num_tokens, num_heads, head_dim]."""


def dense_attend(config: ModelConfig, cu_seqlens: Tensor) -> Attend:
    """Causal attention inside each of several packed sequences; nothing is cached.

    Args:
        cu_seqlens: int32 [num_seqs + 1] running sums of the sequence lengths, from 0.
    """
    specs = [config.attention(layer) for layer in range(config.num_layers)]
    bounds = cu_seqlens.tolist()

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        parts = [
            _causal(query[None, a:b], key[None, a:b], value[None, a:b], specs[layer])[0]
            for a, b in itertools.pairwise(bounds)
        ]
        return torch.cat(parts)

    return attend


def batched_attend(config: ModelConfig, seq_len: int) -> Attend:
    """Causal attention inside consecutive runs of ``seq_len`` tokens: a training batch.

    Differentiable and traced whole by ``torch.compile``: no shape depends on data.
    """
    specs = [config.attention(layer) for layer in range(config.num_layers)]

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (t.unflatten(0, (-1, seq_len)) for t in (query, key, value))
        return _causal(query, key, value, specs[layer]).flatten(0, 1)

    return attend


def _causal(query: Tensor, key: Tensor, value: Tensor, spec: AttentionSpec) -> Tensor:
    """[num_seqs, seq_len, heads, head_dim] -> the same, causal within each sequence."""
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    if spec.softcap is not None:
        return _capped(q, k, v, spec).transpose(1, 2)
    mask = None if spec.window is None else _mask(q.shape[2], spec.window, q.device)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=spec.scale, enable_gqa=True
    )
    return out.transpose(1, 2)


def _capped(q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec) -> Tensor:
    assert spec.softcap is not None
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = (q.float() @ k.float().mT) * spec.scale
    scores = spec.softcap * torch.tanh(scores / spec.softcap)
    mask = _mask(q.shape[2], spec.window, q.device)
    return (scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v.float()).to(q.dtype)


def _mask(length: int, window: int | None, device: torch.device) -> Tensor:
    distance = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    mask = distance >= 0
    return mask if window is None else mask & (distance < window)
