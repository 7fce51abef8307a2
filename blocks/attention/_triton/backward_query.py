"""Gradient of the queries: a block of queries walks over the keys it saw."""

import triton
import triton.language as tl

from blocks.attention._triton.attend import find_sequence
from blocks.attention._triton.backward import load_lse, weights_of
from blocks.attention._triton.softmax import product


@triton.jit
def query_tile(
    tile, q, do, lse, delta, slopes, position, dq, dslopes, key_ptr, value_ptr, start, end,
    stride_k_token, stride_v_token, scale, softcap, window,
    HEAD_DIM: tl.constexpr, TILE_KV: tl.constexpr, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SLOPES: tl.constexpr, WANT_SLOPES: tl.constexpr,
    MASKED: tl.constexpr, INTERPRET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what the keys from ``tile`` on contribute; without MASKED every row sees every key."""
    TILE_Q: tl.constexpr = q.shape[0]
    TILE_D: tl.constexpr = q.shape[1]
    offs_kv = tile + tl.arange(0, TILE_KV)
    offs_d = tl.arange(0, TILE_D)
    mask_kv = offs_kv < end
    if MASKED:
        mask_kv = mask_kv & (offs_kv >= start)
    mask = mask_kv[:, None] & (offs_d < HEAD_DIM)[None, :]
    rows = offs_kv.to(tl.int64)[:, None]
    k = tl.load(key_ptr + rows * stride_k_token + offs_d[None, :], mask=mask, other=0.0)
    v = tl.load(value_ptr + rows * stride_v_token + offs_d[None, :], mask=mask, other=0.0)
    zeros = tl.zeros([TILE_Q, TILE_KV], tl.float32)
    products = product(q, tl.trans(k), zeros, INTERPRET, PRECISION)
    distance = position[:, None] - offs_kv[None, :]
    weights, bent = weights_of(
        products, lse[:, None], scale, softcap, slopes[:, None], distance, HAS_SOFTCAP, HAS_SLOPES
    )
    if MASKED:
        if CAUSAL:
            weights = tl.where(distance >= 0, weights, 0.0)
        if HAS_WINDOW:
            weights = tl.where(distance < window, weights, 0.0)
    dp = product(do, tl.trans(v), zeros, INTERPRET, PRECISION)
    ds = weights * (dp - delta[:, None])
    if MASKED:
        visible = (weights != 0) & mask_kv[None, :]
        ds = tl.where(visible, ds, 0.0)  # what is not seen may hold NaN
    if WANT_SLOPES:
        dslopes -= tl.sum(ds * tl.abs(distance).to(tl.float32), 1)
    if HAS_SOFTCAP:
        ds *= bent
    dq = product(ds.to(k.dtype), k, dq, INTERPRET, PRECISION)
    return dq, dslopes


@triton.jit
def _backward_query_kernel(
    grad_output_ptr,  # [num_tokens, num_heads, HEAD_DIM]
    query_ptr,  # as grad_output
    key_ptr,  # [num_keys, num_kv_heads, HEAD_DIM]
    value_ptr,  # as key
    lse_ptr,  # float32 [num_tokens, num_heads]
    delta_ptr,  # float32 [num_tokens, num_heads]
    slopes_ptr,  # float32 [num_heads] when HAS_SLOPES
    cu_q_ptr,  # int32 [num_seqs + 1]
    key_starts_ptr,  # int32 [num_seqs]
    key_ends_ptr,  # int32 [num_seqs]
    grad_query_ptr,  # [num_tokens, num_heads, HEAD_DIM], contiguous
    grad_slopes_ptr,  # float32 [num_tokens, num_heads] when WANT_SLOPES: one part a row
    num_seqs, num_heads, num_kv_heads, stride_do_token, stride_do_head, stride_q_token,
    stride_q_head, stride_k_token, stride_k_head, stride_v_token, stride_v_head, scale, softcap,
    window,
    WANT_SLOPES: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, TILE_Q: tl.constexpr,
    TILE_KV: tl.constexpr, TILE_D: tl.constexpr, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SLOPES: tl.constexpr, INTERPRET: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: one key head, TILE_Q rows = up to TILE_Q // GROUP queries of one sequence.

    Rows are (query, head of the group), as in the forward. Keeps queries, their output gradients
    and the sum; walks over the keys in up to three runs: the edge of the window, tiles every row
    sees whole, the diagonal. The last blocks, which see most, start first. The host guarantees
    GROUP <= TILE_Q, HEAD_DIM <= TILE_D, contiguous head_dim, and a grid of
    (num_tokens // TOKENS + num_seqs) * num_kv_heads.
    """
    TOKENS: tl.constexpr = TILE_Q // GROUP
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    block = program // num_kv_heads
    kv_head = program % num_kv_heads
    seq = find_sequence(cu_q_ptr, block, num_seqs, TOKENS)
    q_start = tl.load(cu_q_ptr + seq)
    query_len = tl.load(cu_q_ptr + seq + 1) - q_start
    first_token = (block - (q_start // TOKENS + seq)) * TOKENS
    if first_token >= query_len:
        return
    key_start = tl.load(key_starts_ptr + seq).to(tl.int64)
    key_len = tl.load(key_ends_ptr + seq) - tl.load(key_starts_ptr + seq)

    offs_row = tl.arange(0, TILE_Q)
    offs_d = tl.arange(0, TILE_D)
    token = first_token + offs_row // GROUP
    head = kv_head * GROUP + offs_row % GROUP
    mask_row = (offs_row < TOKENS * GROUP) & (token < query_len)
    mask = mask_row[:, None] & (offs_d < HEAD_DIM)[None, :]
    position = key_len - query_len + token
    tokens = (q_start + token).to(tl.int64)
    q_rows = tokens * stride_q_token + head.to(tl.int64) * stride_q_head
    do_rows = tokens * stride_do_token + head.to(tl.int64) * stride_do_head
    rows = tokens * num_heads + head
    q = tl.load(query_ptr + q_rows[:, None] + offs_d[None, :], mask=mask, other=0.0)
    do = tl.load(grad_output_ptr + do_rows[:, None] + offs_d[None, :], mask=mask, other=0.0)
    lse = load_lse(lse_ptr, rows, mask_row)
    delta = tl.load(delta_ptr + rows, mask=mask_row, other=0.0)
    slopes = tl.zeros([TILE_Q], tl.float32)
    if HAS_SLOPES:
        slopes = tl.load(slopes_ptr + head, mask=mask_row, other=0.0)
    dq = tl.zeros([TILE_Q, TILE_D], tl.float32)
    dslopes = tl.zeros([TILE_Q], tl.float32)
    key_ptr += key_start * stride_k_token + kv_head.to(tl.int64) * stride_k_head
    value_ptr += key_start * stride_v_token + kv_head.to(tl.int64) * stride_v_head

    first_position = key_len - query_len + first_token
    last_position = key_len - query_len + tl.minimum(first_token + TOKENS, query_len) - 1
    start, whole_start, whole_end, end = 0, 0, key_len, key_len
    if CAUSAL:
        whole_end = tl.maximum(0, first_position + 1)
        end = tl.maximum(0, last_position + 1)
    if HAS_WINDOW:
        start = tl.maximum(0, first_position - window + 1)
        whole_start = tl.maximum(0, last_position - window + 1)
    first_whole = tl.cdiv(tl.minimum(whole_start, end), TILE_KV) * TILE_KV
    last_whole = tl.maximum(first_whole, whole_end // TILE_KV * TILE_KV)
    for run in tl.static_range(3):
        if HAS_WINDOW or run > 0:
            first = start // TILE_KV * TILE_KV if run == 0 else first_whole
            first = last_whole if run == 2 else first
            last = first_whole if run == 0 else last_whole
            last = end if run == 2 else last
            for tile in tl.range(first, last, TILE_KV):
                dq, dslopes = query_tile(
                    tile, q, do, lse, delta, slopes, position, dq, dslopes, key_ptr, value_ptr,
                    start, end, stride_k_token, stride_v_token, scale, softcap, window, HEAD_DIM,
                    TILE_KV, CAUSAL, HAS_WINDOW, HAS_SOFTCAP, HAS_SLOPES, WANT_SLOPES, run != 1,
                    INTERPRET, PRECISION,
                )  # fmt: skip

    tl.store(
        grad_query_ptr + rows[:, None] * HEAD_DIM + offs_d[None, :],
        (dq * scale).to(grad_query_ptr.dtype.element_ty),
        mask=mask,
    )
    if WANT_SLOPES:
        tl.store(grad_slopes_ptr + rows, dslopes, mask=mask_row)
