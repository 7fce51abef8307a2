"""The specification: eager, dense, differentiable attention in at least float32.

One function does the arithmetic for one sequence (``attend``); the public ones find each
sequence's keys and call it. Slow on purpose: nothing here is fused, split or reordered.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int32, Int64, Shaped
from torch import Tensor

from blocks.attention._options import Options, resolve_options
from blocks.attention._scales import QUANTISED, view_scale
from blocks.attention.output import AttentionOutput


def attend(
    query: Float[Tensor, "query_len num_heads head_dim"],
    key: Float[Tensor, "key_len num_kv_heads head_dim"],
    value: Float[Tensor, "key_len num_kv_heads value_dim"],
    query_positions: Tensor,
    key_positions: Tensor,
    options: Options,
    causal: bool = True,
    visible: Tensor | None = None,
) -> AttentionOutput:
    """Attention of one sequence; positions [query_len] and [key_len] decide who sees whom.

    ``visible`` [query_len, key_len], where given, hides more.
    """
    state = exact(query, key, value, query_positions, key_positions, options, causal, visible)
    return AttentionOutput(state.output.to(query.dtype), state.lse.float().contiguous())


def exact(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_positions: Tensor,
    key_positions: Tensor,
    options: Options,
    causal: bool = True,
    visible: Tensor | None = None,
) -> AttentionOutput:
    """``attend`` before it rounds: output and LSE in float32, or float64 for float64 inputs."""
    compute = torch.promote_types(query.dtype, torch.float32)
    group = query.shape[1] // key.shape[1]
    q = query.to(compute)
    k = repeat(key.to(compute), "key head dim -> key (head group) dim", group=group)
    v = repeat(value.to(compute), "key head dim -> key (head group) dim", group=group)
    scores = torch.einsum("qhd,khd->hqk", q, k) * options.scale
    if options.softcap is not None:
        scores = options.softcap * torch.tanh(scores / options.softcap)
    distance = query_positions[:, None] - key_positions[None, :]  # [query_len, key_len]
    if options.alibi_slopes is not None:
        slopes = rearrange(options.alibi_slopes.to(compute), "head -> head 1 1")
        scores = scores - slopes * distance.abs()
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    if causal:
        hidden |= distance < 0
    if options.window is not None:
        hidden |= distance >= options.window
    if visible is not None:
        hidden |= ~visible
    scores = scores.masked_fill(hidden, -math.inf)
    if options.sinks is not None:
        sink = repeat(options.sinks.to(compute), "head -> head query 1", query=q.shape[0])
        scores = torch.cat([scores, sink], dim=-1)
    elif scores.shape[-1] == 0:
        scores = scores.new_full((*scores.shape[:2], 1), -math.inf)
    empty = (scores == -math.inf).all(dim=-1, keepdim=True)
    scores = scores.masked_fill(empty, 0.0)  # a finite row, so that gradients stay finite
    lse = scores.logsumexp(dim=-1, keepdim=True)
    weights = (scores - lse).exp().masked_fill(empty, 0.0)[..., : k.shape[0]]
    output = torch.einsum("hqk,khd->qhd", weights, v)
    lse = rearrange(lse.masked_fill(empty, -math.inf), "head query 1 -> query head")
    return AttentionOutput(output, lse)


def prefill(
    query: Float[Tensor, "num_tokens num_heads head_dim"],
    key: Float[Tensor, "num_keys num_kv_heads head_dim"],
    value: Float[Tensor, "num_keys num_kv_heads head_dim"],
    cu_seqlens_q: Int32[Tensor, " num_bounds"],
    cu_seqlens_k: Int32[Tensor, " num_bounds"] | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    return_lse: bool = False,
) -> Any:
    """Packed attention, one sequence at a time."""
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    q_bounds = cu_seqlens_q.tolist()
    k_bounds = q_bounds if cu_seqlens_k is None else cu_seqlens_k.tolist()
    states = []
    for s in range(len(q_bounds) - 1):
        q = query[q_bounds[s] : q_bounds[s + 1]]
        k = key[k_bounds[s] : k_bounds[s + 1]]
        v = value[k_bounds[s] : k_bounds[s + 1]]
        key_positions = torch.arange(k.shape[0], device=q.device)
        query_positions = torch.arange(q.shape[0], device=q.device) + (k.shape[0] - q.shape[0])
        states.append(attend(q, k, v, query_positions, key_positions, options, causal))
    return _pack(states, query, return_lse)


def slice_attention(
    query: Float[Tensor, "*batch slice_len num_heads head_dim"],
    key: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    value: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    start: int,
    *,
    cu_seqlens: Int32[Tensor, " num_bounds"] | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
) -> AttentionOutput:
    """The slice's rows of attention over every document up to the end of the slice."""
    if query.dim() == 4:
        settings = resolve_options(query[0], scale, window, softcap, sinks, alibi_slopes)
        states = [
            slice_attention(q, k, v, start, **settings._asdict())
            for q, k, v in zip(query, key, value, strict=True)
        ]
        return AttentionOutput(
            torch.stack([state.output for state in states]),
            torch.stack([state.lse for state in states]),
        )
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    end = start + query.shape[0]
    bounds = [0, end] if cu_seqlens is None else cu_seqlens.tolist()
    states = []
    for first, last in itertools.pairwise(bounds):
        first_row, stop = max(first, start), min(last, end)
        if first_row < stop:
            q, k, v = query[first_row - start : stop - start], key[first:stop], value[first:stop]
            positions = torch.arange(first, stop, device=query.device)
            states.append(exact(q, k, v, positions[first_row - first :], positions, options))
    if not states:
        return AttentionOutput(query, query.new_zeros(query.shape[:2]))
    output = torch.cat([state.output for state in states]).to(query.dtype)
    return AttentionOutput(output, torch.cat([state.lse for state in states]))


def slice_attention_backward(
    grad_output: Float[Tensor, "*batch slice_len num_heads head_dim"],
    query: Float[Tensor, "*batch slice_len num_heads head_dim"],
    key: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    value: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    output: Float[Tensor, "*batch slice_len num_heads head_dim"],
    lse: Float[Tensor, "*batch slice_len num_heads"],
    start: int,
    grad_key: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    grad_value: Float[Tensor, "*batch max_len num_kv_heads head_dim"],
    *,
    cu_seqlens: Int32[Tensor, " num_bounds"] | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    grad_lse: Float[Tensor, "*batch slice_len num_heads"] | None = None,
    grad_sinks: Float[Tensor, " num_heads"] | None = None,
    grad_alibi_slopes: Float[Tensor, " num_heads"] | None = None,
) -> Float[Tensor, "*batch slice_len num_heads head_dim"]:
    """Differentiate ``slice_attention``, and add what belongs to keys, values and settings."""
    compute = grad_key.dtype
    seen = start + query.shape[-3]
    leaves = [t.detach().to(compute).requires_grad_() for t in (query, key, value)]
    per_head = [None if t is None else t.detach().requires_grad_() for t in (sinks, alibi_slopes)]
    with torch.enable_grad():
        state = slice_attention(
            leaves[0],
            leaves[1],
            leaves[2],
            start,
            cu_seqlens=cu_seqlens,
            scale=scale,
            window=window,
            softcap=softcap,
            sinks=per_head[0],
            alibi_slopes=per_head[1],
        )
        total = (state.output * grad_output.to(compute)).sum()
        if grad_lse is not None:
            total = total + torch.where(lse == -math.inf, 0.0, state.lse * grad_lse).sum()
    wanted = [*leaves, *(t for t in per_head if t is not None)]
    found = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)
    for target, source in ((grad_key, found[1]), (grad_value, found[2])):
        target.narrow(-3, 0, seen).add_(source.narrow(-3, 0, seen))
    settings = iter(found[3:])
    for target, setting in ((grad_sinks, sinks), (grad_alibi_slopes, alibi_slopes)):
        gradient = None if setting is None else next(settings)
        if target is not None and gradient is not None:
            target += gradient
    return found[0].to(query.dtype)


def paged_extend(
    query: Float[Tensor, "num_tokens num_heads head_dim"],
    key_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    block_table: Int32[Tensor, "num_seqs max_blocks"],
    seq_lens: Int32[Tensor, " num_seqs"],
    cu_seqlens_q: Int32[Tensor, " num_bounds"],
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    k_scale: Float[Tensor, "..."] | None = None,
    v_scale: Float[Tensor, "..."] | None = None,
    return_lse: bool = False,
) -> Any:
    """Gather each sequence's visible keys from its blocks, then attend."""
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    bounds = cu_seqlens_q.tolist()
    states = []
    for s, seq_len in enumerate(seq_lens.tolist()):
        q = query[bounds[s] : bounds[s + 1]]
        query_positions = torch.arange(q.shape[0], device=q.device) + (seq_len - q.shape[0])
        first = 0 if window is None else max(0, seq_len - q.shape[0] - window + 1)
        key_positions = torch.arange(first, seq_len, device=q.device)
        k = gather_tokens(key_cache, block_table[s], key_positions, k_scale)
        v = gather_tokens(value_cache, block_table[s], key_positions, v_scale)
        states.append(attend(q, k, v, query_positions, key_positions, options))
    return _pack(states, query, return_lse)


def paged_decode(
    query: Float[Tensor, "num_seqs num_heads head_dim"],
    key_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    block_table: Int32[Tensor, "num_seqs max_blocks"],
    seq_lens: Int32[Tensor, " num_seqs"],
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    k_scale: Float[Tensor, "..."] | None = None,
    v_scale: Float[Tensor, "..."] | None = None,
    return_lse: bool = False,
) -> Any:
    """One query a sequence, at its last position; a sequence of length 0 sees nothing."""
    bounds = torch.arange(query.shape[0] + 1, dtype=torch.int32, device=query.device)
    return paged_extend(
        query,
        key_cache,
        value_cache,
        block_table,
        seq_lens,
        bounds,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        k_scale=k_scale,
        v_scale=v_scale,
        return_lse=return_lse,
    )


def mla_decode(
    query: Float[Tensor, "num_seqs num_heads row_dim"],
    latent_cache: Shaped[Tensor, "num_blocks block_size row_dim"],
    block_table: Int32[Tensor, "num_seqs max_blocks"],
    seq_lens: Int32[Tensor, " num_seqs"],
    *,
    scale: float,
    latent_dim: int = 512,
    latent_scale: Float[Tensor, "..."] | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    return_lse: bool = False,
) -> Any:
    """One key head for all query heads, whose values are the leading part of the keys."""
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    cache, head_scale = latent_cache.unsqueeze(2), scale_of_one_head(latent_scale, latent_cache)
    states = []
    for s, seq_len in enumerate(seq_lens.tolist()):
        first = 0 if window is None else max(0, seq_len - window)
        positions = torch.arange(first, seq_len, device=query.device)
        rows = gather_tokens(cache, block_table[s], positions, head_scale)
        last = torch.tensor([seq_len - 1], device=query.device)
        values = rows[..., :latent_dim]
        states.append(attend(query[s : s + 1], rows, values, last, positions, options))
    return _pack(states, query[..., :latent_dim], return_lse)


def tree_decode(
    query: Float[Tensor, "num_tokens num_heads head_dim"],
    key_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    block_table: Int32[Tensor, "num_seqs max_blocks"],
    seq_lens: Int32[Tensor, " num_seqs"],
    cu_seqlens_q: Int32[Tensor, " num_bounds"],
    tree_mask: Int64[Tensor, " num_tokens"],
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    k_scale: Float[Tensor, "..."] | None = None,
    v_scale: Float[Tensor, "..."] | None = None,
    return_lse: bool = False,
) -> Any:
    """As ``paged_extend``, with the mask of a tree among the last keys and depths as positions."""
    options = resolve_options(query, scale, window, softcap, sinks, alibi_slopes)
    bounds = cu_seqlens_q.tolist()
    states = []
    for s, seq_len in enumerate(seq_lens.tolist()):
        q = query[bounds[s] : bounds[s + 1]]
        committed = seq_len - len(q)
        nodes = torch.arange(len(q), device=q.device)
        tree = (tree_mask[bounds[s] : bounds[s + 1], None] >> nodes) & 1 == 1  # [query_len] * 2
        depths = committed + tree.sum(1) - 1
        first = 0 if window is None else max(0, committed - window + 1)
        before = torch.arange(first, max(first, committed), device=q.device)
        keys = torch.cat([before, committed + nodes])
        k = gather_tokens(key_cache, block_table[s], keys, k_scale)
        v = gather_tokens(value_cache, block_table[s], keys, v_scale)
        visible = torch.cat([tree.new_ones(len(q), len(before)), tree], dim=1)
        positions = torch.cat([before, depths])
        states.append(attend(q, k, v, depths, positions, options, False, visible))
    return _pack(states, query, return_lse)


def cascade_decode(
    query: Float[Tensor, "num_seqs num_heads head_dim"],
    key_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Shaped[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    block_table: Int32[Tensor, "num_seqs max_blocks"],
    seq_lens: Int32[Tensor, " num_seqs"],
    prefixes: Sequence[Any],
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Float[Tensor, " num_heads"] | None = None,
    alibi_slopes: Float[Tensor, " num_heads"] | None = None,
    k_scale: Float[Tensor, "..."] | None = None,
    v_scale: Float[Tensor, "..."] | None = None,
    return_lse: bool = False,
) -> Any:
    """``paged_decode``: what is shared changes what is read, not what is computed."""
    return paged_decode(
        query,
        key_cache,
        value_cache,
        block_table,
        seq_lens,
        scale=scale,
        window=window,
        softcap=softcap,
        sinks=sinks,
        alibi_slopes=alibi_slopes,
        k_scale=k_scale,
        v_scale=v_scale,
        return_lse=return_lse,
    )


def merge_states(
    outputs: Float[Tensor, "num_states num_tokens num_heads head_dim"],
    lses: Float[Tensor, "num_states num_tokens num_heads"],
) -> AttentionOutput:
    """Weights of the states are the softmax of their LSEs; a state with LSE -inf is not read."""
    compute = torch.promote_types(outputs.dtype, torch.float32)
    empty = lses == -math.inf  # [num_states, num_tokens, num_heads]
    all_empty = empty.all(dim=0, keepdim=True)
    logits = lses.to(compute).masked_fill(all_empty, 0.0)
    lse = logits.logsumexp(dim=0, keepdim=True)
    weights = (logits - lse).exp().masked_fill(empty, 0.0)
    values = outputs.to(compute).masked_fill(empty[..., None], 0.0)
    output = (weights[..., None] * values).sum(dim=0)
    merged = lse.masked_fill(all_empty, -math.inf).squeeze(0)
    return AttentionOutput(output.to(outputs.dtype), merged.float())


def gather_tokens(
    cache: Tensor, block_row: Tensor, positions: Tensor, scale: Tensor | None = None
) -> Tensor:
    """Tokens of one sequence at ``positions``: [num_positions, num_kv_heads, head_dim].

    Quantised ones come out as float32, times their scale.
    """
    block_size = cache.shape[1]
    at = block_row[positions // block_size].long(), positions % block_size
    if cache.dtype in QUANTISED:
        values = cache.view(torch.uint8)[at].view(cache.dtype).float()
        return values if scale is None else values * view_scale(scale, cache)[at][..., None]
    return cache[at]


def scale_of_one_head(scale: Tensor | None, latent_cache: Tensor) -> Tensor | None:
    """Scales of blocks or tokens with the head dimension that latents do without."""
    if scale is None or scale.dim() == 0 or scale.shape[0] != latent_cache.shape[0]:
        return scale
    return scale.unsqueeze(-1)


def _pack(states: list[AttentionOutput], query: Tensor, return_lse: bool) -> Any:
    if not states:
        empty = AttentionOutput(
            torch.zeros_like(query), query.new_zeros(query.shape[:2], dtype=torch.float32)
        )
        return empty if return_lse else empty.output
    output = torch.cat([state.output for state in states])
    if not return_lse:
        return output
    return AttentionOutput(output, torch.cat([state.lse for state in states]))
