"""Causal attention over a training batch, made of a few large matrix products.

On CPU torch's fused attention is slow at training shapes in bfloat16; taking the queries a block
at a time against the keys up to that block skips most of the masked half and leaves the products
to the matrix library.
"""

import torch
from torch import Tensor

from recipes.model import Attend, ModelConfig

QUERY_BLOCK = 128


def blocked_attend(config: ModelConfig, seq_len: int) -> Attend:
    """Causal attention inside consecutive runs of ``seq_len`` tokens; differentiable.

    The softmax runs in float32 inside, its result and the products in the dtype of the query.
    Windows and soft caps are not known here; ``recipes.model.batched_attend`` has them.
    """
    scales = [config.attention(layer).scale for layer in range(config.num_layers)]
    blocked = torch.full((QUERY_BLOCK, QUERY_BLOCK), -torch.inf).triu(1)

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (t.unflatten(0, (-1, seq_len)).transpose(1, 2) for t in (query, key, value))
        num_seqs, num_heads, _, head_dim = q.shape
        num_kv_heads = k.shape[1]
        group = num_heads // num_kv_heads
        q = (q * scales[layer]).unflatten(1, (num_kv_heads, group))
        parts = []
        for start in range(0, seq_len, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, seq_len)
            rows = stop - start
            part = q[:, :, :, start:stop].reshape(num_seqs, num_kv_heads, group * rows, head_dim)
            scores = part @ k[:, :, :stop].mT  # [num_seqs, num_kv_heads, group * rows, stop]
            scores = scores.unflatten(2, (group, rows))
            mask = torch.nn.functional.pad(blocked[:rows, :rows], (start, 0)).to(scores.dtype)
            weights = (scores + mask).softmax(-1).flatten(2, 3)
            out = weights @ v[:, :, :stop]
            parts.append(out.view(num_seqs, num_heads, rows, head_dim))
        return torch.cat(parts, 2).transpose(1, 2).flatten(0, 1)

    return attend
