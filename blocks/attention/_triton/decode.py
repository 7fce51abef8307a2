"""Attention of one query a sequence over one split of its paged context."""

import triton
import triton.language as tl

from blocks.attention._triton.softmax import base2_scores, normalise, product, softmax_step
from blocks.attention._triton.tile import kv_rows


@triton.jit
def _paged_decode_kernel(
    query_ptr,  # [num_seqs, num_heads, HEAD_DIM]
    key_ptr,  # [num_blocks, BLOCK_SIZE, num_kv_heads, HEAD_DIM]
    value_ptr,  # as key
    table_ptr,  # int32 [num_seqs, max_blocks]
    lens_ptr,  # int32 [num_seqs]
    sinks_ptr,  # float32 [num_heads] when HAS_SINKS
    slopes_ptr,  # float32 [num_heads] when HAS_SLOPES
    output_ptr,  # [num_splits, num_seqs, num_heads, HEAD_DIM], contiguous
    lse_ptr,  # float32 [num_splits, num_seqs, num_heads]
    num_seqs,
    num_heads,
    num_blocks,
    num_splits,
    stride_q_seq,
    stride_q_head,
    stride_k_block,
    stride_k_slot,
    stride_k_head,
    stride_v_block,
    stride_v_slot,
    stride_v_head,
    stride_table,
    scale,
    softcap,
    window,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_KV: tl.constexpr,
    TILE_D: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    INTERPRET: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: one sequence, one key head, one of num_splits equal shares of the context.

    The GROUP query heads of the key head are the rows of one tile (padded to TILE_Q, the least a
    matrix instruction takes), so every key and value is read once. A share is a whole number of
    tiles; a program whose share is empty writes zeros and -inf. The sink, if any, is in split 0.
    The grid (num_seqs, num_kv_heads, num_splits) does not depend on any length, so a captured graph
    can be replayed with other ones.
    """
    seq = tl.program_id(0)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    seq_len = tl.load(lens_ptr + seq)
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(0, seq_len - window)
    tile_start = start // TILE_KV * TILE_KV
    share = tl.cdiv(tl.cdiv(seq_len - tile_start, TILE_KV), num_splits) * TILE_KV
    split_start = tile_start + split * share
    split_end = tl.minimum(split_start + share, seq_len)
    table_ptr += seq.to(tl.int64) * stride_table
    key_ptr += kv_head.to(tl.int64) * stride_k_head
    value_ptr += kv_head.to(tl.int64) * stride_v_head

    offs_row = tl.arange(0, TILE_Q)
    offs_d = tl.arange(0, TILE_D)
    head = kv_head * GROUP + offs_row
    mask_row = offs_row < GROUP
    mask_d = offs_d < HEAD_DIM
    mask_q = mask_row[:, None] & mask_d[None, :]
    q_rows = seq.to(tl.int64) * stride_q_seq + head.to(tl.int64) * stride_q_head
    q = tl.load(query_ptr + q_rows[:, None] + offs_d[None, :], mask=mask_q, other=0.0)
    slopes = tl.zeros([TILE_Q], tl.float32)
    if HAS_SLOPES:
        slopes = tl.load(slopes_ptr + head, mask=mask_row, other=0.0)
    m_i = tl.full([TILE_Q], float("-inf"), tl.float32)
    l_i = tl.zeros([TILE_Q], tl.float32)
    if HAS_SINKS:
        if split == 0:
            m_i = tl.load(sinks_ptr + head, mask=mask_row, other=0.0) * 1.4426950408889634
            l_i += tl.where(m_i == float("-inf"), 0.0, 1.0)
    acc = tl.zeros([TILE_Q, TILE_D], tl.float32)

    for tile in tl.range(split_start, split_end, TILE_KV):
        offs_kv = tile + tl.arange(0, TILE_KV)
        seen = (offs_kv >= start) & (offs_kv < split_end)
        k_rows, mask_kv = kv_rows(
            table_ptr, offs_kv, seen, 0, num_blocks, stride_k_block, stride_k_slot, True, BLOCK_SIZE
        )
        mask_k = mask_kv[None, :] & mask_d[:, None]
        k = tl.load(key_ptr + k_rows[None, :] + offs_d[:, None], mask=mask_k, other=0.0)
        v_rows, mask_kv = kv_rows(
            table_ptr, offs_kv, seen, 0, num_blocks, stride_v_block, stride_v_slot, True, BLOCK_SIZE
        )
        mask_v = mask_kv[:, None] & mask_d[None, :]
        v = tl.load(value_ptr + v_rows[:, None] + offs_d[None, :], mask=mask_v, other=0.0)
        products = product(q, k, tl.zeros([TILE_Q, TILE_KV], tl.float32), INTERPRET, PRECISION)
        distance = (seq_len - 1 - offs_kv)[None, :]
        scores = base2_scores(products, scale, softcap, slopes, distance, HAS_SOFTCAP, HAS_SLOPES)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        weights, m_i, l_i, acc = softmax_step(scores, m_i, l_i, acc)
        acc = product(weights.to(v.dtype), v, acc, INTERPRET, PRECISION)

    output, lse = normalise(m_i, l_i, acc)
    out_rows = (split * num_seqs + seq).to(tl.int64) * num_heads + head
    tl.store(
        output_ptr + out_rows[:, None] * HEAD_DIM + offs_d[None, :],
        output.to(output_ptr.dtype.element_ty),
        mask=mask_q,
    )
    tl.store(lse_ptr + out_rows, lse, mask=mask_row)
