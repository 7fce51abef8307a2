"""Multi-head latent attention of one query a sequence over one split of its paged latents."""

import triton
import triton.language as tl

from blocks.attention._triton.decode import split_of
from blocks.attention._triton.softmax import base2_scores, normalise, product, softmax_step
from blocks.attention._triton.tile import kv_rows, load_scales, unpack


@triton.jit
def _mla_decode_kernel(
    query_ptr,  # [num_seqs, num_heads, LATENT_DIM + ROPE_DIM]
    cache_ptr,  # [num_blocks, BLOCK_SIZE, LATENT_DIM + ROPE_DIM]
    table_ptr,  # int32 [num_seqs, max_blocks]
    lens_ptr,  # int32 [num_seqs]
    scales_ptr,  # float32, of the shape SCALE says, with one key head
    sinks_ptr,  # float32 [num_heads] when HAS_SINKS
    slopes_ptr,  # float32 [num_heads] when HAS_SLOPES
    output_ptr,  # [num_splits, num_seqs, num_heads, LATENT_DIM], contiguous
    lse_ptr,  # float32 [num_splits, num_seqs, num_heads]
    num_seqs, num_heads, num_blocks, num_splits, split_len, stride_q_seq, stride_q_head,
    stride_block, stride_slot, stride_table, scale, softcap, window,
    LATENT_DIM: tl.constexpr, ROPE_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE_Q: tl.constexpr, TILE_KV: tl.constexpr, TILE_L: tl.constexpr, TILE_R: tl.constexpr,
    SCALE: tl.constexpr, FIXED_SPLITS: tl.constexpr, HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr, HAS_SINKS: tl.constexpr, HAS_SLOPES: tl.constexpr,
    INTERPRET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: one sequence, TILE_Q of its heads, one split of the context.

    A cached row is a latent, which is key and value of every head at once, and a rotated part,
    which is key only. A tile of latents is therefore loaded once and multiplied twice. Splits lie
    as in ``paged_decode``; a program whose split is empty writes an LSE of -inf only. The
    sink is in split 0. The grid (num_seqs, head tiles, num_splits) does not depend on any length.
    The host guarantees LATENT_DIM <= TILE_L, ROPE_DIM <= TILE_R, and a split_len of whole tiles.
    """
    seq = tl.program_id(0)
    split = tl.program_id(2)
    seq_len = tl.load(lens_ptr + seq)
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(0, seq_len - window)
    first, last = split_of(start, seq_len, split, num_splits, split_len, TILE_KV, FIXED_SPLITS)
    table_ptr += seq.to(tl.int64) * stride_table

    head = tl.program_id(1) * TILE_Q + tl.arange(0, TILE_Q)
    offs_l = tl.arange(0, TILE_L)
    offs_r = tl.arange(0, TILE_R)
    mask_row = head < num_heads
    mask_l = offs_l < LATENT_DIM
    mask_r = offs_r < ROPE_DIM
    out_rows = (split * num_seqs + seq).to(tl.int64) * num_heads + head
    q_rows = query_ptr + seq.to(tl.int64) * stride_q_seq + head.to(tl.int64) * stride_q_head
    mask_q = mask_row[:, None] & mask_l[None, :]
    q = tl.load(q_rows[:, None] + offs_l[None, :], mask=mask_q, other=0.0)
    q_rope = tl.load(
        q_rows[:, None] + LATENT_DIM + offs_r[None, :],
        mask=mask_row[:, None] & mask_r[None, :],
        other=0.0,
    )
    slopes = tl.zeros([TILE_Q], tl.float32)
    if HAS_SLOPES:
        slopes = tl.load(slopes_ptr + head, mask=mask_row, other=0.0)
    m_i = tl.full([TILE_Q], float("-inf"), tl.float32)
    l_i = tl.zeros([TILE_Q], tl.float32)
    if HAS_SINKS:
        if split == 0:
            m_i = tl.load(sinks_ptr + head, mask=mask_row, other=0.0) * 1.4426950408889634
            l_i += tl.where(m_i == float("-inf"), 0.0, 1.0)
    acc = tl.zeros([TILE_Q, TILE_L], tl.float32)

    if SCALE == "tensor":
        scale *= tl.load(scales_ptr)

    for tile in tl.range(first, last, TILE_KV):
        offs_kv = tile + tl.arange(0, TILE_KV)
        seen = (offs_kv >= start) & (offs_kv < last)
        rows, mask_kv = kv_rows(
            table_ptr, offs_kv, seen, 0, num_blocks, stride_block, stride_slot, True, BLOCK_SIZE
        )
        latent = tl.load(
            cache_ptr + rows[:, None] + offs_l[None, :],
            mask=mask_kv[:, None] & mask_l[None, :],
            other=0.0,
        )
        rope = tl.load(
            cache_ptr + LATENT_DIM + rows[None, :] + offs_r[:, None],
            mask=mask_kv[None, :] & mask_r[:, None],
            other=0.0,
        )
        latent = unpack(latent, q.dtype, INTERPRET)
        rope = unpack(rope, q.dtype, INTERPRET)
        products = tl.zeros([TILE_Q, TILE_KV], tl.float32)
        products = product(q_rope, rope, products, INTERPRET, PRECISION)
        products = product(q, tl.trans(latent), products, INTERPRET, PRECISION)
        if SCALE == "block" or SCALE == "token":
            scales = load_scales(
                scales_ptr, table_ptr, offs_kv, seen, 0, 1, num_blocks, SCALE, BLOCK_SIZE
            )
            products *= scales[None, :]
        distance = (seq_len - 1 - offs_kv)[None, :]
        scores = base2_scores(products, scale, softcap, slopes, distance, HAS_SOFTCAP, HAS_SLOPES)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        weights, m_i, l_i, acc = softmax_step(scores, m_i, l_i, acc)
        if SCALE == "block" or SCALE == "token":
            if q.dtype == tl.float16:  # small scales would leave its range, so not in the weights
                latent = (latent.to(tl.float32) * scales[:, None]).to(tl.float16)
            else:
                weights *= scales[None, :]
        acc = product(weights.to(q.dtype), latent, acc, INTERPRET, PRECISION)

    if SCALE == "tensor":
        acc *= tl.load(scales_ptr)
    output, lse = normalise(m_i, l_i, acc)
    written = (first < last) | (split == 0)
    tl.store(
        output_ptr + out_rows[:, None] * LATENT_DIM + offs_l[None, :],
        output.to(output_ptr.dtype.element_ty),
        mask=mask_q & written,
    )
    tl.store(lse_ptr + out_rows, lse, mask=mask_row)
