"""Attention of several query tokens over one split of the paged context they share."""

import triton
import triton.language as tl

from blocks.attention._triton.attend import find_sequence
from blocks.attention._triton.decode import split_of
from blocks.attention._triton.softmax import base2_scores, normalise, softmax_step
from blocks.attention._triton.tile import add_values, key_products, load_scale


@triton.jit
def count_bits(x):
    """Number of set bits of each int64; in plain arithmetic, which the interpreter has too."""
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    x = x + (x >> 8)
    x = x + (x >> 16)
    return ((x + (x >> 32)) & 0x7F).to(tl.int32)


@triton.jit
def _rows_kernel(
    query_ptr,  # [num_tokens, num_heads, HEAD_DIM]
    key_ptr,  # [num_blocks, BLOCK_SIZE, num_kv_heads, HEAD_DIM]
    value_ptr,  # as key
    table_ptr,  # int32 [num_rows, max_blocks]
    lens_ptr,  # int32 [num_groups], keys of each group
    starts_ptr,  # int32 [num_groups], the first key to attend to, when HAS_STARTS
    cu_q_ptr,  # int32 [num_groups + 1]
    tree_ptr,  # int64 [num_tokens] when TREE: bit j is set where the token sees draft token j
    ends_ptr,  # int32 [num_tokens], one past where each query sits, when not TREE
    k_scale_ptr,  # float32, of the shape K_SCALE says
    v_scale_ptr,  # float32, of the shape V_SCALE says
    sinks_ptr,  # float32 [num_heads] when HAS_SINKS
    slopes_ptr,  # float32 [num_heads] when HAS_SLOPES
    output_ptr,  # [num_splits, num_tokens, num_heads, HEAD_DIM], contiguous
    lse_ptr,  # float32 [num_splits, num_tokens, num_heads]
    num_groups, num_tokens, num_heads, num_blocks, num_splits, split_len, stride_q_token,
    stride_q_head, stride_k_block, stride_k_slot, stride_k_head, stride_v_block, stride_v_slot,
    stride_v_head, stride_table, scale, softcap, window,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE_Q: tl.constexpr,
    TILE_KV: tl.constexpr, TILE_D: tl.constexpr, K_SCALE: tl.constexpr, V_SCALE: tl.constexpr,
    FIXED_SPLITS: tl.constexpr, HAS_STARTS: tl.constexpr, TREE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_SLOPES: tl.constexpr, INTERPRET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: TILE_Q rows = up to TILE_Q // GROUP queries of a group, one key head, one split.

    The queries of a group share a context: with TREE they are the draft tokens of one sequence, the
    last keys of it, and each sees the committed keys and the drafts its mask names; their positions
    are their depths. Without, they are the tokens of different sequences that begin alike (the
    context is in the table row of the first), and see it up to where they sit. Splits, scales and
    the promises of the host are those of ``_paged_decode_kernel``; the grid is
    (num_tokens // TOKENS + num_groups, num_kv_heads, num_splits), a tree has at most 64 tokens.
    """
    TOKENS: tl.constexpr = TILE_Q // GROUP
    block = tl.program_id(0)
    kv_head = tl.program_id(1)
    num_kv_heads = tl.num_programs(1)
    split = tl.program_id(2)
    group = find_sequence(cu_q_ptr, block, num_groups, TOKENS)
    q_start = tl.load(cu_q_ptr + group)
    query_len = tl.load(cu_q_ptr + group + 1) - q_start
    first_token = (block - (q_start // TOKENS + group)) * TOKENS
    if first_token >= query_len:
        return
    key_len = tl.load(lens_ptr + group)

    offs_row = tl.arange(0, TILE_Q)
    offs_d = tl.arange(0, TILE_D)
    token = first_token + offs_row // GROUP
    head = kv_head * GROUP + offs_row % GROUP
    mask_row = (offs_row < TOKENS * GROUP) & (token < query_len)
    mask_q = mask_row[:, None] & (offs_d < HEAD_DIM)[None, :]
    if TREE:
        committed = key_len - query_len
        tree_ptr += q_start
        seen_drafts = tl.load(tree_ptr + token, mask=mask_row, other=1)  # [TILE_Q]
        position = committed + count_bits(seen_drafts) - 1
        least_position = committed
        table_ptr += group.to(tl.int64) * stride_table
    else:
        position = tl.load(ends_ptr + q_start + token, mask=mask_row, other=0) - 1
        least_position = tl.min(tl.where(position < 0, key_len + window, position), 0)
        table_ptr += q_start.to(tl.int64) * stride_table
    start = 0
    if HAS_STARTS:
        start = tl.load(starts_ptr + group)
    if HAS_WINDOW:
        start = tl.maximum(start, least_position - window + 1)
    first, last = split_of(start, key_len, split, num_splits, split_len, TILE_KV, FIXED_SPLITS)

    out_rows = (split.to(tl.int64) * num_tokens + q_start + token) * num_heads + head
    if first >= last:
        if (split > 0) | (not HAS_SINKS):
            none = tl.full([TILE_Q], float("-inf"), tl.float32)
            tl.store(lse_ptr + out_rows, none, mask=mask_row)
            return
    q_rows = (q_start + token).to(tl.int64) * stride_q_token + head.to(tl.int64) * stride_q_head
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
    key_ptr += kv_head.to(tl.int64) * stride_k_head
    value_ptr += kv_head.to(tl.int64) * stride_v_head
    scale = scale * load_scale(k_scale_ptr, kv_head, K_SCALE)

    for tile in tl.range(first, last, TILE_KV):
        offs_kv = tile + tl.arange(0, TILE_KV)
        mask_kv = (offs_kv >= start) & (offs_kv < last)
        products = key_products(
            q, offs_kv, mask_kv, key_ptr, k_scale_ptr, table_ptr, 0, kv_head, num_kv_heads,
            num_blocks, stride_k_block, stride_k_slot, HEAD_DIM, True, BLOCK_SIZE, K_SCALE,
            INTERPRET, PRECISION,
        )  # fmt: skip
        visible = mask_kv[None, :] & mask_row[:, None]
        key_position = offs_kv
        if TREE:
            draft = offs_kv - committed
            shift = tl.minimum(tl.maximum(draft, 0), 63).to(tl.int64)
            bit = (seen_drafts[:, None] >> shift[None, :]) & 1
            visible = visible & ((draft < 0)[None, :] | (bit == 1))
            if HAS_WINDOW or HAS_SLOPES:
                drafts = tl.load(tree_ptr + draft, mask=mask_kv & (draft >= 0), other=1)
                depth_position = committed + count_bits(drafts) - 1
                key_position = tl.where(draft < 0, offs_kv, depth_position)
        distance = position[:, None] - key_position[None, :]
        if not TREE:
            visible = visible & (distance >= 0)
        if HAS_WINDOW:
            visible = visible & (distance < window)
        scores = base2_scores(products, scale, softcap, slopes, distance, HAS_SOFTCAP, HAS_SLOPES)
        scores = tl.where(visible, scores, float("-inf"))
        weights, m_i, l_i, acc = softmax_step(scores, m_i, l_i, acc)
        acc = add_values(
            weights, acc, offs_kv, mask_kv, value_ptr, v_scale_ptr, table_ptr, 0, kv_head,
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
