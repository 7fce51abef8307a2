"""What the decoder calls for attention: ``(layer, query, key, value) -> output``.

The decoder knows nothing of masks, caches or kernels; it is handed one of these functions.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.attention import prefill
from recipes.model.config import AttentionSpec, ModelConfig

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query [num_tokens, num_heads, head_dim], key and value [num_tokens, num_kv_heads,
head_dim]) -> [num_tokens, num_heads, head_dim]. Query, key and value may be strided views."""


def dense_attend(config: ModelConfig, cu_seqlens: Tensor) -> Attend:
    """Causal attention inside each of several packed sequences; nothing is cached.

    Args:
        cu_seqlens: int32 [num_seqs + 1] running sums of the sequence lengths, from 0.
    """
    specs = attention_specs(config)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return prefill(query, key, value, cu_seqlens, **specs[layer]._asdict())

    return attend


def batched_attend(config: ModelConfig, seq_len: int) -> Attend:
    """Causal attention inside consecutive runs of ``seq_len`` tokens: a training batch.

    Differentiable; without window and softcap ``torch.compile`` traces it whole, as no shape
    depends on data.
    """
    specs = attention_specs(config)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        spec = specs[layer]
        if spec.window is not None or spec.softcap is not None:
            bounds = torch.arange(0, len(query) + 1, seq_len, dtype=torch.int32)
            return prefill(query, key, value, bounds.to(query.device), **spec._asdict())
        q, k, v = (t.unflatten(0, (-1, seq_len)).transpose(1, 2) for t in (query, key, value))
        out = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=spec.scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out.transpose(1, 2).flatten(0, 1)

    return attend


def attention_specs(config: ModelConfig) -> list[AttentionSpec]:
    """``config.attention`` of every layer."""
    return [config.attention(layer) for layer in range(config.num_layers)]
