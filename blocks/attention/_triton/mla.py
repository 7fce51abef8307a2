"""Multi-head latent attention of one query a sequence over one split of its paged latents."""

import triton
import triton.language as tl

from blocks.attention._triton.softmax import base2_scores, normalise, product, softmax_step
from blocks.attention._triton.tile import kv_rows


@triton.jit
def _mla_decode_kernel(
    query_ptr,  # [num_seqs, num_heads, LATENT_DIM + ROPE_DIM]
    cache_ptr,  # [num_blocks, BLOCK_SIZE, LATENT_DIM + ROPE_DIM]
    table_ptr,  # int32 [num_seqs, max_blocks]
    lens_ptr,  # int32 [num_seqs]
    sinks_ptr,  # float32 [num_heads] when HAS_SINKS
    slopes_ptr,  # float32 [num_heads] when HAS_SLOPES
    output_ptr,  # [num_splits, num_seqs, num_heads, LATENT_DIM], contiguous
    lse_ptr,  # float32 [num_splits, num_seqs, num_heads]
    num_seqs,
    num_heads,
    num_blocks,
    num_splits,
    fixed_share,
    stride_q_seq,
    stride_q_head,
    stride_block,
    stride_slot,
    stride_table,
    scale,
    softcap,
    window,
    LATENT_DIM: tl.constexpr,
    ROPE_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_Q: tl.constexpr,
    TILE_KV: tl.constexpr,
    TILE_L: tl.constexpr,
    TILE_R: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    HAS_SLOPES: tl.constexpr,
    INTERPRET: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program: one sequence, TILE_Q of its heads, one split of the context.

    A cached row is a latent, which is key and value of every head at once, and a rotated part,
    which is key only. A tile of latents is therefore loaded once and multiplied twice. The splits
    are ``num_splits`` equal shares in whole tiles, or, with ``fixed_share`` > 0, that many tokens
    from multiples of it, wherever the context ends. A program whose share is empty writes zeros
    and -inf; the sink is in split 0. The grid (num_seqs, head tiles, num_splits) does not depend on
    any length.
    """
    seq = tl.program_id(0)
    split = tl.program_id(2)
    seq_len = tl.load(lens_ptr + seq)
    start = 0
    if HAS_WINDOW:
        start = tl.maximum(0, seq_len - window)
    tile_start = start // TILE_KV * TILE_KV
    share = tl.cdiv(tl.cdiv(seq_len - tile_start, TILE_KV), num_splits) * TILE_KV
    if fixed_share > 0:
        share = fixed_share
        tile_start = start // fixed_share * fixed_share
    split_start = tile_start + split * share
    split_end = tl.minimum(split_start + share, seq_len)
    table_ptr += seq.to(tl.int64) * stride_table

    head = tl.program_id(1) * TILE_Q + tl.arange(0, TILE_Q)
    offs_l = tl.arange(0, TILE_L)
    offs_r = tl.arange(0, TILE_R)
    mask_row = head < num_heads
    mask_l = offs_l < LATENT_DIM
    mask_r = offs_r < ROPE_DIM
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

    for tile in tl.range(tl.maximum(split_start, start // TILE_KV * TILE_KV), split_end, TILE_KV):
        offs_kv = tile + tl.arange(0, TILE_KV)
        seen = (offs_kv >= start) & (offs_kv < split_end)
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
        products = tl.zeros([TILE_Q, TILE_KV], tl.float32)
        products = product(q_rope, rope, products, INTERPRET, PRECISION)
        products = product(q, tl.trans(latent), products, INTERPRET, PRECISION)
        distance = (seq_len - 1 - offs_kv)[None, :]
        scores = base2_scores(products, scale, softcap, slopes, distance, HAS_SOFTCAP, HAS_SLOPES)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        weights, m_i, l_i, acc = softmax_step(scores, m_i, l_i, acc)
        acc = product(weights.to(latent.dtype), latent, acc, INTERPRET, PRECISION)

    output, lse = normalise(m_i, l_i, acc)
    out_rows = (split * num_seqs + seq).to(tl.int64) * num_heads + head
    tl.store(
        output_ptr + out_rows[:, None] * LATENT_DIM + offs_l[None, :],
        output.to(output_ptr.dtype.element_ty),
        mask=mask_q,
    )
    tl.store(lse_ptr + out_rows, lse, mask=mask_row)
