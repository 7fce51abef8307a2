"""Gradients of keys and values: a block of keys walks over the queries that saw it."""

import triton
import triton.language as tl

from blocks.attention._triton.attend import find_sequence
from blocks.attention._triton.backward import load_lse, weights_of
from blocks.attention._triton.softmax import product


@triton.jit
def key_tile(
    tile, k, v, offs_kv, dk, dv, grad_output_ptr, query_ptr, lse_ptr, delta_ptr, slopes_ptr,
    kv_head, shift, query_len, num_heads, stride_do_token, stride_do_head, stride_q_token,
    stride_q_head, scale, softcap, window,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_Q: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SLOPES: tl.constexpr,
    SCALED: tl.constexpr, MASKED: tl.constexpr, INTERPRET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the queries from ``tile`` on contribute; without MASKED all see every key.

    The key's sum lacks the factor ``scale`` unless SCALED.
    """
    TILE_KV: tl.constexpr = k.shape[0]
    TILE_D: tl.constexpr = k.shape[1]
    offs_row = tl.arange(0, TILE_Q)
    offs_d = tl.arange(0, TILE_D)
    token = tile + offs_row // GROUP
    head = kv_head * GROUP + offs_row % GROUP
    mask_row = (offs_row < TILE_Q // GROUP * GROUP) & (token < query_len)
    mask = mask_row[:, None] & (offs_d < HEAD_DIM)[None, :]
    tokens, heads = token.to(tl.int64), head.to(tl.int64)
    q_rows = tokens * stride_q_token + heads * stride_q_head
    do_rows = tokens * stride_do_token + heads * stride_do_head
    rows = tokens * num_heads + head
    q = tl.load(query_ptr + q_rows[:, None] + offs_d[None, :], mask=mask, other=0.0)
    lse = load_lse(lse_ptr, rows, mask_row)
    slopes = tl.zeros([TILE_Q], tl.float32)
    if HAS_SLOPES:
        slopes = tl.load(slopes_ptr + head, mask=mask_row, other=0.0)
    zeros = tl.zeros([TILE_KV, TILE_Q], tl.float32)
    products = product(k, tl.trans(q), zeros, INTERPRET, PRECISION)
    distance = (token + shift)[None, :] - offs_kv[:, None]
    weights, bent = weights_of(
        products, lse[None, :], scale, softcap, slopes[None, :], distance, HAS_SOFTCAP, HAS_SLOPES
    )
    if MASKED:
        if CAUSAL:
            weights = tl.where(distance >= 0, weights, 0.0)
        if HAS_WINDOW:
            weights = tl.where(distance < window, weights, 0.0)
    do = tl.load(grad_output_ptr + do_rows[:, None] + offs_d[None, :], mask=mask, other=0.0)
    dv = product(weights.to(do.dtype), do, dv, INTERPRET, PRECISION)
    dp = product(v, tl.trans(do), zeros, INTERPRET, PRECISION)
    delta = tl.load(delta_ptr + rows, mask=mask_row, other=0.0)
    ds = weights * (dp - delta[None, :])
    if HAS_SOFTCAP:
        ds *= bent
    if SCALED:
        ds *= scale
    if MASKED:
        ds = tl.where(weights != 0, ds, 0.0)  # what is not seen may hold NaN
    dk = product(ds.to(q.dtype), q, dk, INTERPRET, PRECISION)
    return dk, dv


@triton.jit
def _backward_key_kernel(
    grad_output_ptr,  # [num_tokens, num_heads, HEAD_DIM]
    query_ptr,  # as grad_output
    key_ptr,  # [num_keys, num_kv_heads, HEAD_DIM]
    value_ptr,  # as key
    lse_ptr,  # float32 [num_tokens, num_heads]
    delta_ptr,  # float32 [num_tokens, num_heads]
    slopes_ptr,  # float32 [num_heads] when HAS_SLOPES
    cu_q_ptr,  # int32 [num_seqs + 1]
    key_starts_ptr,  # int32 [num_seqs], rising
    key_ends_ptr,  # int32 [num_seqs]
    grad_key_ptr,  # [num_keys, num_kv_heads, HEAD_DIM]; float32 when ACCUMULATE
    grad_value_ptr,  # as grad_key
    num_seqs, num_heads, num_kv_heads, stride_do_token, stride_do_head, stride_q_token,
    stride_q_head, stride_k_token, stride_k_head, stride_v_token, stride_v_head, stride_dk_token,
    stride_dk_head, stride_dv_token, stride_dv_head, scale, softcap, window,
    ACCUMULATE: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_Q: tl.constexpr,
    TILE_KV: tl.constexpr, TILE_D: tl.constexpr, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SLOPES: tl.constexpr, INTERPRET: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: TILE_KV keys of one sequence and head; nobody else writes their gradients.

    Keeps keys, values and both sums; walks over the queries of the whole group, rows (query, head
    of the group), in up to three runs: the diagonal, tiles that see all keys, the edge of the
    window. The first keys, which most queries see, start first. With ACCUMULATE the sums start from
    what is there, and keys no query sees are left alone; without, they get zeros. The host
    guarantees GROUP <= TILE_Q, HEAD_DIM <= TILE_D, contiguous head_dim, and a grid of
    (num_keys // TILE_KV + num_seqs) * num_kv_heads.
    """
    TOKENS: tl.constexpr = TILE_Q // GROUP
    block = tl.program_id(0) // num_kv_heads
    kv_head = tl.program_id(0) % num_kv_heads
    seq = find_sequence(key_starts_ptr, block, num_seqs, TILE_KV)
    key_start = tl.load(key_starts_ptr + seq)
    key_len = tl.load(key_ends_ptr + seq) - key_start
    first_key = (block - (key_start // TILE_KV + seq)) * TILE_KV
    if first_key >= key_len:
        return
    q_start = tl.load(cu_q_ptr + seq)
    query_len = tl.load(cu_q_ptr + seq + 1) - q_start
    shift = key_len - query_len  # position of the first query
    last_key = tl.minimum(first_key + TILE_KV, key_len) - 1

    start, whole_start, whole_end, end = 0, 0, query_len, query_len
    if CAUSAL:
        start = tl.minimum(tl.maximum(first_key - shift, 0), query_len)
        whole_start = tl.minimum(tl.maximum(last_key - shift, 0), query_len)
    if HAS_WINDOW:
        whole_end = tl.minimum(tl.maximum(first_key + window - shift, start), query_len)
        end = tl.minimum(tl.maximum(last_key + window - shift, start), query_len)
    if ACCUMULATE:
        if start >= end:
            return

    offs_kv = first_key + tl.arange(0, TILE_KV)
    offs_d = tl.arange(0, TILE_D)
    mask = (offs_kv < key_len)[:, None] & (offs_d < HEAD_DIM)[None, :]
    keys = (key_start + offs_kv).to(tl.int64)[:, None]
    wide_head = kv_head.to(tl.int64)
    k_offsets = keys * stride_k_token + wide_head * stride_k_head + offs_d[None, :]
    v_offsets = keys * stride_v_token + wide_head * stride_v_head + offs_d[None, :]
    k = tl.load(key_ptr + k_offsets, mask=mask, other=0.0)
    v = tl.load(value_ptr + v_offsets, mask=mask, other=0.0)
    if ACCUMULATE:
        dk_offsets = keys * stride_dk_token + wide_head * stride_dk_head + offs_d[None, :]
        dv_offsets = keys * stride_dv_token + wide_head * stride_dv_head + offs_d[None, :]
        dk = tl.load(grad_key_ptr + dk_offsets, mask=mask, other=0.0)
        dv = tl.load(grad_value_ptr + dv_offsets, mask=mask, other=0.0)
    else:
        dk = tl.zeros([TILE_KV, TILE_D], tl.float32)
        dv = tl.zeros([TILE_KV, TILE_D], tl.float32)
    first_row = q_start.to(tl.int64)

    first_whole = tl.minimum(start + tl.cdiv(whole_start - start, TOKENS) * TOKENS, end)
    last_whole = end
    if HAS_WINDOW:
        last_whole = first_whole + tl.maximum(whole_end - first_whole, 0) // TOKENS * TOKENS
    for run in tl.static_range(3):
        if (CAUSAL or run > 0) and (HAS_WINDOW or run < 2):
            first = start if run == 0 else first_whole
            first = last_whole if run == 2 else first
            last = first_whole if run == 0 else last_whole
            last = end if run == 2 else last
            for tile in tl.range(first, last, TOKENS):
                dk, dv = key_tile(
                    tile, k, v, offs_kv, dk, dv, grad_output_ptr + first_row * stride_do_token,
                    query_ptr + first_row * stride_q_token, lse_ptr + first_row * num_heads,
                    delta_ptr + first_row * num_heads, slopes_ptr, kv_head, shift, query_len,
                    num_heads, stride_do_token, stride_do_head, stride_q_token, stride_q_head,
                    scale, softcap, window, GROUP, HEAD_DIM, TILE_Q, CAUSAL, HAS_WINDOW,
                    HAS_SOFTCAP, HAS_SLOPES, ACCUMULATE, run != 1, INTERPRET, PRECISION,
                )  # fmt: skip

    if not ACCUMULATE:
        dk *= scale
    # where they go is worked out again, from another load: registers are short inside the loops
    keys = (tl.load(key_starts_ptr + seq) + offs_kv).to(tl.int64)[:, None]
    dk_ptrs = grad_key_ptr + keys * stride_dk_token + wide_head * stride_dk_head + offs_d[None, :]
    dv_ptrs = grad_value_ptr + keys * stride_dv_token + wide_head * stride_dv_head + offs_d[None, :]
    tl.store(dk_ptrs, dk.to(grad_key_ptr.dtype.element_ty), mask=mask)
    tl.store(dv_ptrs, dv.to(grad_value_ptr.dtype.element_ty), mask=mask)
