"""Attention of one query a sequence over one split of its paged context."""

import triton
import triton.language as tl

from blocks.attention._triton.softmax import base2_scores, normalise, softmax_step
from blocks.attention._triton.tile import add_values, key_products, load_scale


@triton.jit
def split_of(
    start, end, split, num_splits, split_len, TILE_KV: tl.constexpr, FIXED_SPLITS: tl.constexpr
):
    """Positions [first, last) of one split of a context seen from ``start`` to ``end``.

    Equal shares in whole tiles; or with FIXED_SPLITS every ``split_len`` positions from 0, so that
    they lie where they lie whatever the call looks like.
    """
    if FIXED_SPLITS:
        first = tl.maximum(split * split_len, start // TILE_KV * TILE_KV)
        last = tl.minimum(split * split_len + split_len, end)
    else:
        tile_start = start // TILE_KV * TILE_KV
        share = tl.cdiv(tl.cdiv(end - tile_start, TILE_KV), num_splits) * TILE_KV
        first = tile_start + split * share
        last = tl.minimum(first + share, end)
    return first, last


@triton.jit
def _paged_decode_kernel(
    query_ptr,  # [num_seqs, num_heads, HEAD_DIM]
    key_ptr,  # [num_blocks, BLOCK_SIZE, num_kv_heads, HEAD_DIM]
    value_ptr,  # as key
    table_ptr,  # int32 [num_seqs, max_blocks]
    lens_ptr,  # int32 [num_seqs]
    starts_ptr,  # int32 [num_seqs], the first position to attend to, when HAS_STARTS
    k_scale_ptr,  # float32, of the shape K_SCALE says
    v_scale_ptr,  # float32, of the shape V_SCALE says
    sinks_ptr,  # float32 [num_heads] when HAS_SINKS
    slopes_ptr,  # float32 [num_heads] when HAS_SLOPES
    output_ptr,  # [num_splits, num_seqs, num_heads, HEAD_DIM], contiguous
    lse_ptr,  # float32 [num_splits, num_seqs, num_heads]
    num_seqs, num_heads, num_blocks, num_splits, split_len, stride_q_seq, stride_q_head,
    stride_k_block, stride_k_slot, stride_k_head, stride_v_block, stride_v_slot, stride_v_head,
    stride_table, scale, softcap, window,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE_Q: tl.constexpr,
    TILE_KV: tl.constexpr, TILE_D: tl.constexpr, K_SCALE: tl.constexpr, V_SCALE: tl.constexpr,
    FIXED_SPLITS: tl.constexpr, HAS_STARTS: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_SLOPES: tl.constexpr,
    INTERPRET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: one sequence, one key head, one of num_splits splits of the context.

    The GROUP query heads of the key head are the rows of one tile (padded to TILE_Q, the least a
    matrix instruction takes), so every key and value is read once. A split is a whole number of
    tiles (``split_of``); a program whose split is empty writes an LSE of -inf and leaves. Scales of
    a head are applied once, those of positions to scores and weights. The sink is in split 0.
    The grid (num_seqs, num_kv_heads, num_splits) does not depend on any length, so a captured graph
    can be replayed with other ones. The host guarantees GROUP <= TILE_Q, HEAD_DIM <= TILE_D, and a
    split_len of whole tiles.
    """
    seq = tl.program_id(0)
    kv_head = tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    split = tl.program_id(2)
    seq_len = tl.load(lens_ptr + seq)
    start = 0
    if HAS_STARTS:
        start = tl.load(starts_ptr + seq)
    if HAS_WINDOW:
        start = tl.maximum(start, seq_len - window)
    first, last = split_of(start, seq_len, split, num_splits, split_len, TILE_KV, FIXED_SPLITS)

    offs_row = tl.arange(0, TILE_Q)
    offs_d = tl.arange(0, TILE_D)
    head = kv_head * GROUP + offs_row
    mask_row = offs_row < GROUP
    mask_q = mask_row[:, None] & (offs_d < HEAD_DIM)[None, :]
    out_rows = (split * num_seqs + seq).to(tl.int64) * num_heads + head
    if (first >= last) & (split > 0):
        tl.store(lse_ptr + out_rows, tl.full([TILE_Q], float("-inf"), tl.float32), mask=mask_row)
        return
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
    table_ptr += seq.to(tl.int64) * stride_table
    key_ptr += kv_head.to(tl.int64) * stride_k_head
    value_ptr += kv_head.to(tl.int64) * stride_v_head
    scale = scale * load_scale(k_scale_ptr, kv_head, K_SCALE)

    for tile in tl.range(first, last, TILE_KV):
        offs_kv = tile + tl.arange(0, TILE_KV)
        seen = (offs_kv >= start) & (offs_kv < last)
        products = key_products(
            q, offs_kv, seen, key_ptr, k_scale_ptr, table_ptr, 0, kv_head, num_kv_heads, num_blocks,
            stride_k_block, stride_k_slot, HEAD_DIM, True, BLOCK_SIZE, K_SCALE, INTERPRET,
            PRECISION,
        )  # fmt: skip
        distance = (seq_len - 1 - offs_kv)[None, :]
        scores = base2_scores(products, scale, softcap, slopes, distance, HAS_SOFTCAP, HAS_SLOPES)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        weights, m_i, l_i, acc = softmax_step(scores, m_i, l_i, acc)
        acc = add_values(
            weights, acc, offs_kv, seen, value_ptr, v_scale_ptr, table_ptr, 0, kv_head,
            num_kv_heads, num_blocks, stride_v_block, stride_v_slot, q.dtype, HEAD_DIM, True,
            BLOCK_SIZE, V_SCALE, INTERPRET, PRECISION,
        )  # fmt: skip

    acc *= load_scale(v_scale_ptr, kv_head, V_SCALE)
    output, lse = normalise(m_i, l_i, acc)
    tl.store(
        output_ptr + out_rows[:, None] * HEAD_DIM + offs_d[None, :],
        output.to(output_ptr.dtype.element_ty),
        mask=mask_q,
    )
    tl.store(lse_ptr + out_rows, lse, mask=mask_row)
