"""Attention of blocks of queries over packed or paged keys: ``prefill`` and ``paged_extend``."""

import triton
import triton.language as tl

from blocks.attention._triton.softmax import base2_scores, normalise, softmax_step
from blocks.attention._triton.tile import add_values, key_products, load_scale


@triton.jit
def find_sequence(cu_q_ptr, block, num_seqs, TOKENS: tl.constexpr):
    """The sequence whose blocks of queries contain ``block``.

    Sequence s owns blocks from ``cu_q[s] // TOKENS + s``: enough for its queries, never
    overlapping, and computed without knowing the other lengths.
    """
    low = 0
    high = num_seqs
    while low < high:
        middle = (low + high) // 2
        start = tl.load(cu_q_ptr + middle) // TOKENS + middle
        if start <= block:
            low = middle + 1
        else:
            high = middle
    return low - 1


@triton.jit
def attend_tile(
    tile, q, position, mask_row, slopes, m_i, l_i, acc, key_ptr, value_ptr, k_scale_ptr,
    v_scale_ptr, table_ptr, start, end, key_start, kv_head, num_kv_heads, num_blocks,
    stride_k_block, stride_k_slot, stride_v_block, stride_v_slot, scale, softcap, window,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE_KV: tl.constexpr, PAGED: tl.constexpr,
    K_SCALE: tl.constexpr, V_SCALE: tl.constexpr, CAUSAL: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SLOPES: tl.constexpr, MASKED: tl.constexpr,
    INTERPRET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Fold the keys from ``tile`` on into all rows; without MASKED every row sees every key."""
    offs_kv = tile + tl.arange(0, TILE_KV)
    mask_kv = offs_kv < end
    if MASKED:
        mask_kv = mask_kv & (offs_kv >= start)
    products = key_products(
        q, offs_kv, mask_kv, key_ptr, k_scale_ptr, table_ptr, key_start, kv_head, num_kv_heads,
        num_blocks, stride_k_block, stride_k_slot, HEAD_DIM, PAGED, BLOCK_SIZE, K_SCALE, INTERPRET,
        PRECISION,
    )  # fmt: skip
    distance = position[:, None] - offs_kv[None, :]
    scores = base2_scores(products, scale, softcap, slopes, distance, HAS_SOFTCAP, HAS_SLOPES)
    if MASKED:
        visible = (offs_kv < end)[None, :] & mask_row[:, None]
        if CAUSAL:
            visible = visible & (distance >= 0)
        if HAS_WINDOW:
            visible = visible & (distance < window)
        scores = tl.where(visible, scores, float("-inf"))
    weights, m_i, l_i, acc = softmax_step(scores, m_i, l_i, acc)
    acc = add_values(
        weights, acc, offs_kv, mask_kv, value_ptr, v_scale_ptr, table_ptr, key_start, kv_head,
        num_kv_heads, num_blocks, stride_v_block, stride_v_slot, q.dtype, HEAD_DIM, PAGED,
        BLOCK_SIZE, V_SCALE, INTERPRET, PRECISION,
    )  # fmt: skip
    return m_i, l_i, acc


@triton.jit
def _attend_kernel(
    query_ptr,  # [num_tokens, num_heads, HEAD_DIM]
    key_ptr,  # [num_blocks, BLOCK_SIZE, num_kv_heads, HEAD_DIM], or [num_keys, ...] when not PAGED
    value_ptr,  # as key
    table_ptr,  # int32 [num_seqs, max_blocks]; unused when not PAGED
    lens_ptr,  # int32 [num_seqs] context lengths; running sums of key lengths when not PAGED
    cu_q_ptr,  # int32 [num_seqs + 1]
    k_scale_ptr,  # float32, of the shape K_SCALE says
    v_scale_ptr,  # float32, of the shape V_SCALE says
    sinks_ptr,  # float32 [num_heads] when HAS_SINKS
    slopes_ptr,  # float32 [num_heads] when HAS_SLOPES
    output_ptr,  # [num_tokens, num_heads, HEAD_DIM], contiguous
    lse_ptr,  # float32 [num_tokens, num_heads] when HAS_LSE
    num_seqs, num_heads, num_blocks, stride_q_token, stride_q_head, stride_k_block, stride_k_slot,
    stride_k_head, stride_v_block, stride_v_slot, stride_v_head, stride_table, scale, softcap,
    window,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE_Q: tl.constexpr,
    TILE_KV: tl.constexpr, TILE_D: tl.constexpr, PAGED: tl.constexpr, K_SCALE: tl.constexpr,
    V_SCALE: tl.constexpr, CAUSAL: tl.constexpr, ALL_MASKED: tl.constexpr, HAS_LSE: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr,
    HAS_SLOPES: tl.constexpr, INTERPRET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: one key head, TILE_Q rows = up to TILE_Q // GROUP queries of one sequence.

    Rows are (query, head of the group), query-major, so they share every key and value tile. Loops
    over the context in tiles of TILE_KV keys, several cache blocks each: first the tiles all rows
    see whole (without window), then those that need a mask (``attend_tile``); with ALL_MASKED the
    mask is put on all, since compilers round the two loops differently (they fuse a multiplication
    and a subtraction where no mask is between) and which tiles are whole depends on the block's
    first query. Scales of quantised keys and values: a head's are applied once, those of positions
    a tile at a time. The host guarantees GROUP <= TILE_Q, HEAD_DIM <= TILE_D, contiguous head_dim,
    and a grid of (num_tokens // TOKENS + num_seqs) * num_kv_heads, longest first, key heads side by
    side.
    """
    TOKENS: tl.constexpr = TILE_Q // GROUP
    num_kv_heads = num_heads // GROUP
    item = tl.num_programs(0) - 1 - tl.program_id(0)  # the last blocks see most keys: they go first
    block = item // num_kv_heads
    kv_head = item % num_kv_heads
    seq = find_sequence(cu_q_ptr, block, num_seqs, TOKENS)
    q_start = tl.load(cu_q_ptr + seq)
    query_len = tl.load(cu_q_ptr + seq + 1) - q_start
    first_token = (block - (q_start // TOKENS + seq)) * TOKENS
    if first_token >= query_len:
        return
    if PAGED:
        key_start = 0
        key_len = tl.load(lens_ptr + seq)
    else:
        key_start = tl.load(lens_ptr + seq)
        key_len = tl.load(lens_ptr + seq + 1) - key_start
    table_ptr += seq.to(tl.int64) * stride_table

    offs_row = tl.arange(0, TILE_Q)
    offs_d = tl.arange(0, TILE_D)
    token = first_token + offs_row // GROUP
    head = kv_head * GROUP + offs_row % GROUP
    mask_row = (offs_row < TOKENS * GROUP) & (token < query_len)
    mask_d = offs_d < HEAD_DIM
    position = key_len - query_len + token  # [TILE_Q]
    q_rows = (q_start + token).to(tl.int64) * stride_q_token + head.to(tl.int64) * stride_q_head
    q = tl.load(
        query_ptr + q_rows[:, None] + offs_d[None, :],
        mask=mask_row[:, None] & mask_d[None, :],
        other=0.0,
    )
    slopes = tl.zeros([TILE_Q], tl.float32)
    if HAS_SLOPES:
        slopes = tl.load(slopes_ptr + head, mask=mask_row, other=0.0)
    m_i = tl.full([TILE_Q], float("-inf"), tl.float32)
    l_i = tl.zeros([TILE_Q], tl.float32)
    if HAS_SINKS:
        m_i = tl.load(sinks_ptr + head, mask=mask_row, other=0.0) * 1.4426950408889634
        l_i += tl.where(m_i == float("-inf"), 0.0, 1.0)
    acc = tl.zeros([TILE_Q, TILE_D], tl.float32)

    first_position = key_len - query_len + first_token
    last_token = tl.minimum(first_token + TOKENS, query_len)
    end = key_len
    whole = key_len  # keys before it are seen by every row
    if CAUSAL:
        end = tl.maximum(0, key_len - query_len + last_token)
        whole = tl.maximum(0, first_position + 1)
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(0, first_position - window + 1)
    if HAS_WINDOW or ALL_MASKED:
        whole = 0
    tile_start = start // TILE_KV * TILE_KV
    tile_whole = tl.maximum(tile_start, whole // TILE_KV * TILE_KV)
    key_ptr += kv_head.to(tl.int64) * stride_k_head
    value_ptr += kv_head.to(tl.int64) * stride_v_head
    scale = scale * load_scale(k_scale_ptr, kv_head, K_SCALE)

    for masked in tl.static_range(2):
        if masked == 1 or not ALL_MASKED:
            first = tile_whole if masked else tile_start
            last = end if masked else tile_whole
            for tile in tl.range(first, last, TILE_KV):
                m_i, l_i, acc = attend_tile(
                    tile, q, position, mask_row, slopes, m_i, l_i, acc, key_ptr, value_ptr,
                    k_scale_ptr, v_scale_ptr, table_ptr, start, end, key_start, kv_head,
                    num_kv_heads, num_blocks, stride_k_block, stride_k_slot, stride_v_block,
                    stride_v_slot, scale, softcap, window, HEAD_DIM, BLOCK_SIZE, TILE_KV, PAGED,
                    K_SCALE, V_SCALE, CAUSAL, HAS_WINDOW, HAS_SOFTCAP, HAS_SLOPES, masked == 1,
                    INTERPRET, PRECISION,
                )  # fmt: skip

    acc *= load_scale(v_scale_ptr, kv_head, V_SCALE)
    output, lse = normalise(m_i, l_i, acc)
    out_rows = (q_start + token).to(tl.int64) * num_heads + head
    tl.store(
        output_ptr + out_rows[:, None] * HEAD_DIM + offs_d[None, :],
        output.to(output_ptr.dtype.element_ty),
        mask=mask_row[:, None] & mask_d[None, :],
    )
    if HAS_LSE:
        tl.store(lse_ptr + out_rows, lse, mask=mask_row)
