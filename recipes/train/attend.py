"""Causal attention over a training batch, made of a few large matrix products.

On CPU torch's fused attention is slow at training shapes in bfloat16; taking the queries a block
at a time against the keys up to that block skips most of the masked half and leaves the products
to the matrix library.
"""

import torch
from einops import rearrange
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
        apart = "(seq token) head dim -> seq head token dim"
        q, k, v = (rearrange(t, apart, token=seq_len) for t in (query, key, value))
        grouped = "seq (kv_head group) token dim -> seq kv_head group token dim"
        q = rearrange(q * scales[layer], grouped, kv_head=k.shape[1])
        parts = []
        for start in range(0, seq_len, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, seq_len)
            rows = stop - start
            part = rearrange(q[:, :, :, start:stop], "... group row dim -> ... (group row) dim")
            scores = part @ k[:, :, :stop].mT
            scores = rearrange(scores, "... (group row) key -> ... group row key", row=rows)
            mask = torch.nn.functional.pad(blocked[:rows, :rows], (start, 0)).to(scores.dtype)
            weights = (scores + mask).softmax(-1)
            weights = rearrange(weights, "... group row key -> ... (group row) key")
            by_head = "seq kv_head (group row) dim -> seq (kv_head group) row dim"
            parts.append(rearrange(weights @ v[:, :, :stop], by_head, row=rows))
        return rearrange(torch.cat(parts, 2), "seq head token dim -> (seq token) head dim")

    return attend
