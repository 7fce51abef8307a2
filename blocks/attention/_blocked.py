"""Attention and its backward in torch calls, a block of queries against a block of keys at a time.

The backward keeps no score of the forward: weights are recomputed from the LSE, so memory stays
near that of the inputs however long the sequences are. Everything here takes equally long
sequences with a leading batch dimension: queries [batch, query_len, num_heads, head_dim], keys and
values [batch, key_len, num_kv_heads, head_dim], queries the tail of the keys. Inside, a head of
keys is one matrix and a row is (head of the group, query).
"""

import math

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from blocks.attention._backward_call import BackwardCall
from blocks.attention._options import Options

QUERY_BLOCK, KEY_BLOCK = 64, 256
FORWARD_SCORES = 1 << 20
"""Most scores the forward holds at once, unless one row of every head is more."""


def forward(
    query: Tensor, key: Tensor, value: Tensor, options: Options, causal: bool
) -> tuple[Tensor, Tensor]:
    """Output in the query's dtype, and LSE [batch, query_len, num_heads] in the dtype of sums."""
    batch, query_len, num_heads, _ = query.shape
    key_len, num_kv_heads = key.shape[1:3]
    k, v = _key_matrices(key), _key_matrices(value)
    sinks = _by_head(options.sinks, k.dtype, batch, num_kv_heads)
    slopes = _by_head(options.alibi_slopes, k.dtype, batch, num_kv_heads)
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    lse = k.new_empty(query.shape[:3])
    block = max(1, FORWARD_SCORES // max(1, batch * num_heads * key_len))
    for start in range(0, query_len, block):
        rows = range(start, min(start + block, query_len))
        keys = _seen(rows, query_len, key_len, options, causal)
        q = _row_matrices(query[:, start : rows.stop], num_kv_heads).mul_(options.scale)
        seen = (slice(None), slice(keys.start, keys.stop))
        scores, _ = _scores(q, k[seen], slopes, rows, keys, key_len - query_len, options, causal)
        sums = scores.logsumexp(-1, keepdim=True)  # [batch * num_kv_heads, group, rows, 1]
        if sinks is not None:
            sums = torch.logaddexp(sums, sinks.expand_as(sums))
        weights = scores.sub_(_never_empty(sums)).exp_().flatten(1, 2)
        part = weights @ v[seen]
        output[:, start : rows.stop] = _rows_back(part, batch, len(rows))
        lse[:, start : rows.stop] = _rows_back(sums.flatten(1, 2), batch, len(rows))[..., 0]
    return output, lse


def backward(call: BackwardCall, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Add to ``grad_key`` and ``grad_value``; return gradients of query, sinks and slopes.

    Gradients of keys and values are summed in the dtype of sums over all queries, then added once.
    The gradients of sinks and slopes are [num_heads], zero where the setting is absent.
    """
    grad_output, grad_lse, query, key, value, output, lse, grad_key, grad_value, options = call
    batch, query_len, num_heads, _ = query.shape
    key_len, num_kv_heads = key.shape[1:3]
    k, v = _key_matrices(key), _key_matrices(value)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    slopes = _by_head(options.alibi_slopes, k.dtype, batch, num_kv_heads)
    delta = (grad_output.to(k.dtype) * output.to(k.dtype)).sum(-1)
    if grad_lse is not None:
        delta -= grad_lse
    lse = _never_empty(lse.to(k.dtype))
    grad_query = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    grad_sinks, grad_slopes = k.new_zeros(num_heads), k.new_zeros(num_heads)
    if options.sinks is not None:
        grad_sinks -= ((options.sinks - lse).exp_() * delta).sum((0, 1))
    for start in range(0, query_len, QUERY_BLOCK):
        rows = range(start, min(start + QUERY_BLOCK, query_len))
        at = slice(start, rows.stop)
        q = _row_matrices(query[:, at], num_kv_heads).mul_(options.scale)
        do = _row_matrices(grad_output[:, at], num_kv_heads)
        row_lse = _row_matrices(lse[:, at, :, None], num_kv_heads)
        row_delta = _row_matrices(delta[:, at, :, None], num_kv_heads)
        dq = torch.zeros_like(q)
        seen = _seen(rows, query_len, key_len, options, causal)
        for first in range(seen.start // KEY_BLOCK * KEY_BLOCK, seen.stop, KEY_BLOCK):
            keys = range(max(first, seen.start), min(first + KEY_BLOCK, seen.stop))
            part = (slice(None), slice(keys.start, keys.stop))
            scores, bent = _scores(
                q, k[part], slopes, rows, keys, key_len - query_len, options, causal
            )
            weights = scores.flatten(1, 2).sub_(row_lse).exp_()
            dv[part] += weights.mT @ do
            ds = torch.baddbmm(row_delta, do, v[part].mT, beta=-1).mul_(weights)
            if slopes is not None:
                distance = _distance(rows, keys, key_len - query_len, ds)
                lost = (ds.view(scores.shape) * distance.abs()).sum((2, 3))
                by_head = "(batch kv_head) group -> (kv_head group)"
                grad_slopes -= reduce(lost, by_head, "sum", batch=batch)
            if bent is not None:
                ds.mul_(bent)
            dq.baddbmm_(ds, k[part])
            dk[part] += ds.mT @ q
        grad_query[:, at] = _rows_back(dq.mul_(options.scale), batch, len(rows))
    for total, found in ((grad_key, dk), (grad_value, dv)):
        total += rearrange(found, "(batch head) key dim -> batch key head dim", batch=batch)
    return grad_query, grad_sinks, grad_slopes


def _scores(
    q: Tensor,
    k: Tensor,
    slopes: Tensor | None,
    rows: range,
    keys: range,
    shift: int,
    options: Options,
    causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Scores [batch * num_kv_heads, group, rows, keys], -inf where unseen, and under a softcap
    their derivative by the product, [batch * num_kv_heads, group * rows, keys]."""
    scores, bent = q @ k.mT, None
    if options.softcap is not None:
        scores = scores.div_(options.softcap).tanh_()
        bent = 1 - scores.square()
        scores *= options.softcap
    scores = scores.unflatten(1, (-1, len(rows)))
    window = options.window or math.inf
    nearest = rows.start + shift - (keys.stop - 1)
    farthest = rows.stop - 1 + shift - keys.start
    masked = causal and (nearest < 0 or farthest >= window)
    if masked or slopes is not None:
        distance = _distance(rows, keys, shift, scores)
        if slopes is not None:
            scores -= slopes * distance.abs()
        if masked:
            scores.masked_fill_((distance < 0) | (distance >= window), -math.inf)
    return scores, bent


def _distance(rows: range, keys: range, shift: int, like: Tensor) -> Tensor:
    """Positions between query and key, [rows, keys]; negative where the key comes later."""
    ends = {"dtype": like.dtype, "device": like.device}
    positions = torch.arange(rows.start + shift, rows.stop + shift, **ends)
    return positions[:, None] - torch.arange(keys.start, keys.stop, **ends)


def _seen(rows: range, query_len: int, key_len: int, options: Options, causal: bool) -> range:
    """Keys that some of the queries see."""
    if not causal:
        return range(key_len)
    shift = key_len - query_len
    start = 0 if options.window is None else rows.start + shift - options.window + 1
    stop = max(0, rows.stop + shift)
    return range(min(max(0, start), stop), stop)


def _key_matrices(t: Tensor) -> Tensor:
    """[batch, key_len, num_kv_heads, head_dim] as [batch * num_kv_heads, key_len, head_dim]."""
    compute = torch.promote_types(t.dtype, torch.float32)
    matrices = rearrange(t, "batch key head dim -> (batch head) key dim")
    return matrices.to(compute, copy=True).contiguous()


def _row_matrices(t: Tensor, num_kv_heads: int) -> Tensor:
    """[batch, rows, num_heads, n] as [batch * num_kv_heads, group * rows, n], always a copy."""
    compute = torch.promote_types(t.dtype, torch.float32)
    by_head = "batch row (kv_head group) n -> batch kv_head group row n"
    rows = rearrange(t, by_head, kv_head=num_kv_heads)
    rows = rows.to(compute, copy=True, memory_format=torch.contiguous_format)
    return rearrange(rows, "batch kv_head group row n -> (batch kv_head) (group row) n")


def _rows_back(t: Tensor, batch: int, num_rows: int) -> Tensor:
    """The inverse of ``_row_matrices``, as a view: [batch, rows, num_heads, n]."""
    back = "(batch kv_head) (group row) n -> batch row (kv_head group) n"
    return rearrange(t, back, batch=batch, row=num_rows)


def _by_head(t: Tensor | None, dtype: torch.dtype, batch: int, num_kv_heads: int) -> Tensor | None:
    """[num_heads] as [batch * num_kv_heads, group, 1, 1]."""
    if t is None:
        return None
    by_head = "(kv_head group) -> (batch kv_head) group 1 1"
    return repeat(t.to(dtype), by_head, kv_head=num_kv_heads, batch=batch)


def _never_empty(lse: Tensor) -> Tensor:
    """Rows that saw nothing get an LSE of inf, which makes all their weights 0."""
    return lse.masked_fill(lse == -math.inf, math.inf)
