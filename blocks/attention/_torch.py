"""Attention from torch calls: one gather and one ``scaled_dot_product_attention`` a sequence.

The way to run on a CPU without a compiler, and the differentiable way for training. The callers
keep settings that ``scaled_dot_product_attention`` cannot express (``needs_eager``) away from here.
"""

import itertools

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from blocks.attention._call import Call
from blocks.attention._options import Options
from blocks.attention.reference import attend, gather_tokens


def prefill(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    q_bounds: list[int],
    k_bounds: list[int],
    options: Options,
    causal: bool,
) -> Tensor:
    """Packed attention; sequences of one length go through one call."""
    batch = len(q_bounds) - 1
    if batch > 1 and _one_length(q_bounds) and q_bounds == k_bounds and not options.window:
        apart = "(batch token) head dim -> batch head token dim"
        q, k, v = (rearrange(t, apart, batch=batch) for t in (query, key, value))
        output = F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=options.scale, enable_gqa=True
        )
        return rearrange(output, "batch head token dim -> (batch token) head dim")
    outputs = []
    for s in range(batch):
        q = query[q_bounds[s] : q_bounds[s + 1]]
        k, v = (t[k_bounds[s] : k_bounds[s + 1]] for t in (key, value))
        outputs.append(one_sequence(q, k, v, options, causal))
    return torch.cat(outputs) if outputs else torch.zeros_like(query)


def paged(call: Call, bounds: list[int], seq_lens: list[int]) -> Tensor:
    """Attention over pages, gathered (and dequantised) one sequence at a time."""
    query, options, scales = call.query, call.options, call.scales
    outputs = []
    for s, seq_len in enumerate(seq_lens):
        q = query[bounds[s] : bounds[s + 1]]
        first = 0 if options.window is None else max(0, seq_len - len(q) - options.window + 1)
        positions = torch.arange(first, seq_len, device=query.device)
        k = gather_tokens(call.key, call.table[s], positions, scales.k).to(q.dtype)
        v = gather_tokens(call.value, call.table[s], positions, scales.v).to(q.dtype)
        outputs.append(one_sequence(q, k, v, options, True))
    return torch.cat(outputs) if outputs else torch.zeros_like(query)


def one_sequence(query: Tensor, key: Tensor, value: Tensor, options: Options, causal: bool):
    """Queries are the tail of the keys: [query_len, num_heads, head_dim]."""
    query_len, key_len = query.shape[0], key.shape[0]
    if query_len > key_len or query_len == 0:  # rows that see nothing, or no rows
        key_positions = torch.arange(key_len, device=query.device)
        query_positions = torch.arange(query_len, device=query.device) + (key_len - query_len)
        return attend(query, key, value, query_positions, key_positions, options, causal).output
    q, k, v = (t.transpose(0, 1)[None] for t in (query, key, value))
    mask = _mask(query_len, key_len, options.window, query.device) if causal else None
    square = mask is not None and query_len == key_len and options.window is None
    output = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=None if square else mask,
        is_causal=square,
        scale=options.scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output[0].transpose(0, 1)


def needs_eager(options: Options, return_lse: bool) -> bool:
    """Whether the fused torch call cannot express these settings."""
    return return_lse or any(
        o is not None for o in (options.softcap, options.sinks, options.alibi_slopes)
    )


def _mask(query_len: int, key_len: int, window: int | None, device: torch.device) -> Tensor | None:
    if query_len == 1 and (window is None or window >= key_len):
        return None
    rows = torch.arange(query_len, device=device)[:, None] + (key_len - query_len)
    distance = rows - torch.arange(key_len, device=device)
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


def _one_length(bounds: list[int]) -> bool:
    first = bounds[1] - bounds[0]
    return first > 0 and all(b - a == first for a, b in itertools.pairwise(bounds))
