"""Norm and rotation of query and key, and the write into the cache, in one launch."""

import triton
import triton.language as tl

from blocks.kv._triton.quantise import codes_of, head_scales, largest, store_quantised


@triton.jit
def _pairs(ptr, mask, half, INTERLEAVED: tl.constexpr, TILE_HALF: tl.constexpr):
    """Both halves [rows, TILE_HALF] in fp32 of the part that turns, each row at its ``ptr``."""
    if INTERLEAVED:
        offs = tl.arange(0, 2 * TILE_HALF)[None, :]
        both = tl.load(ptr + offs, mask=mask & (offs < 2 * half), other=0.0)
        a, b = tl.split(tl.reshape(both, [both.shape[0], TILE_HALF, 2]))
    else:
        offs = tl.arange(0, TILE_HALF)[None, :]
        a = tl.load(ptr + offs, mask=mask & (offs < half), other=0.0)
        b = tl.load(ptr + half + offs, mask=mask & (offs < half), other=0.0)
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def _store_pairs(ptr, a, b, mask, half, INTERLEAVED: tl.constexpr, TILE_HALF: tl.constexpr):
    """The opposite of `_pairs`, in the dtype of a and b."""
    if INTERLEAVED:
        offs = tl.arange(0, 2 * TILE_HALF)[None, :]
        both = tl.reshape(tl.join(a, b), [a.shape[0], 2 * TILE_HALF])
        tl.store(ptr + offs, both, mask=mask & (offs < 2 * half))
    else:
        offs = tl.arange(0, TILE_HALF)[None, :]
        tl.store(ptr + offs, a, mask=mask & (offs < half))
        tl.store(ptr + half + offs, b, mask=mask & (offs < half))


@triton.jit
def _weighted(x, scale, weight, offset, dtype, ROUND_FIRST: tl.constexpr):
    """The last step of the norm, rounded to ``dtype`` as the norm by itself would be."""
    y = x * scale[:, None]
    if ROUND_FIRST:
        y = y.to(dtype).to(tl.float32)
    return (y * (weight + offset)).to(dtype).to(tl.float32)


@triton.jit
def _turned(
    ptr,  # [TILE_HEADS, 1] where each head begins
    weight_ptr,  # [head_dim], or None for no norm
    mask,  # [TILE_HEADS, 1]
    cos, sin, half, head_dim, eps, weight_offset,
    INTERLEAVED: tl.constexpr, ROUND_FIRST: tl.constexpr, TILE_HALF: tl.constexpr,
    TILE_REST: tl.constexpr,
):  # fmt: skip
    """Heads of one token normed and turned: both halves, and the rest that does not turn."""
    dtype = ptr.dtype.element_ty
    rest_offs = 2 * half + tl.arange(0, TILE_REST)[None, :]
    rest_mask = rest_offs < head_dim
    a, b = _pairs(ptr, mask, half, INTERLEAVED, TILE_HALF)
    rest = tl.load(ptr + rest_offs, mask=mask & rest_mask, other=0.0).to(tl.float32)
    if weight_ptr is not None:
        squares = tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1) + tl.sum(rest * rest, axis=1)
        scale = 1.0 / tl.sqrt(squares / head_dim + eps)
        row = weight_ptr + tl.zeros([1, 1], tl.int32)
        wa, wb = _pairs(row, True, half, INTERLEAVED, TILE_HALF)
        w_rest = tl.load(row + rest_offs, mask=rest_mask, other=0.0).to(tl.float32)
        a = _weighted(a, scale, wa, weight_offset, dtype, ROUND_FIRST)
        b = _weighted(b, scale, wb, weight_offset, dtype, ROUND_FIRST)
        rest = _weighted(rest, scale, w_rest, weight_offset, dtype, ROUND_FIRST)
    turned_a = a * cos - b * sin
    turned_b = b * cos + a * sin
    return turned_a.to(dtype), turned_b.to(dtype), rest.to(dtype)


@triton.jit
def rope_write_kernel(
    query_ptr,  # [num_tokens, num_heads, head_dim]; each head contiguous, as in the next three
    stride_query_token, stride_query_head,
    key_ptr,  # [num_tokens, num_kv_heads, head_dim]
    stride_key_token, stride_key_head,
    value_ptr,  # [num_tokens, num_kv_heads, head_dim]
    stride_value_token, stride_value_head,
    out_ptr,  # as query; may be query_ptr
    stride_out_token, stride_out_head,
    positions_ptr,  # [num_tokens]
    cos_sin_ptr,  # [max_positions, 2 * half] fp32
    query_norm_ptr,  # [head_dim], or None
    key_norm_ptr,  # [head_dim], or None
    key_cache_ptr,  # [num_blocks, BLOCK_SIZE, num_kv_heads, head_dim]; uint8 where quantised
    value_cache_ptr,
    stride_block,  # of both caches
    stride_slot,
    k_scale_ptr,  # [num_blocks, BLOCK_SIZE, num_kv_heads] fp32 with strides of 0, or None
    stride_k_scale_block, stride_k_scale_slot, stride_k_scale_head, v_scale_ptr,
    stride_v_scale_block, stride_v_scale_slot, stride_v_scale_head,
    slot_mapping_ptr,  # [num_tokens]
    num_slots, num_heads, num_kv_heads, half, head_dim, eps, weight_offset,
    BLOCK_SIZE: tl.constexpr, INTERLEAVED: tl.constexpr, ROUND_FIRST: tl.constexpr,
    K_DYNAMIC: tl.constexpr, V_DYNAMIC: tl.constexpr, IS_INT8: tl.constexpr, HARDWARE: tl.constexpr,
    TILE_HEADS: tl.constexpr, TILE_HALF: tl.constexpr, TILE_REST: tl.constexpr,
    TILE_DIM: tl.constexpr,
):  # fmt: skip
    """One program owns TILE_HEADS heads of one token: of the query, or of key and value.

    Grid (num_tokens, tiles of query heads + tiles of key heads). It reads its heads once, norms and
    turns them in registers, rounding where the separate operations would, and writes them once: the
    query to ``out``, key and value to the token's slot. A slot outside [0, num_slots) is not
    written. The host guarantees that the tiles cover half, the unturned rest and head_dim, that
    positions lie in the table, and that no slot is named twice.
    """
    token = tl.program_id(0).to(tl.int64)
    tile = tl.program_id(1)
    query_tiles = tl.cdiv(num_heads, TILE_HEADS)
    position = tl.load(positions_ptr + token).to(tl.int64)
    pairs = tl.arange(0, TILE_HALF)[None, :]
    row_ptr = cos_sin_ptr + position * 2 * half + pairs
    cos = tl.load(row_ptr, mask=pairs < half, other=0.0)
    sin = tl.load(row_ptr + half, mask=pairs < half, other=0.0)
    rest_offs = 2 * half + tl.arange(0, TILE_REST)[None, :]
    rest_mask = rest_offs < head_dim
    if tile < query_tiles:
        q_heads = (tile * TILE_HEADS + tl.arange(0, TILE_HEADS)).to(tl.int64)[:, None]
        q_mask = q_heads < num_heads
        q_a, q_b, q_rest = _turned(
            query_ptr + token * stride_query_token + q_heads * stride_query_head,
            query_norm_ptr, q_mask, cos, sin, half, head_dim, eps, weight_offset,
            INTERLEAVED, ROUND_FIRST, TILE_HALF, TILE_REST,
        )  # fmt: skip
        to_ptr = out_ptr + token * stride_out_token + q_heads * stride_out_head
        _store_pairs(to_ptr, q_a, q_b, q_mask, half, INTERLEAVED, TILE_HALF)
        tl.store(to_ptr + rest_offs, q_rest, mask=q_mask & rest_mask)
    else:
        slot = tl.load(slot_mapping_ptr + token)
        block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
        head = ((tile - query_tiles) * TILE_HEADS + tl.arange(0, TILE_HEADS)).to(tl.int64)
        heads = head[:, None]
        head_mask = (head < num_kv_heads) & (slot >= 0) & (slot < num_slots)
        mask = head_mask[:, None]
        at = block * stride_block + offset * stride_slot + heads * head_dim
        dims = tl.arange(0, TILE_DIM)[None, :]
        dim_mask = mask & (dims < head_dim)
        a, b, rest = _turned(
            key_ptr + token * stride_key_token + heads * stride_key_head,
            key_norm_ptr, mask, cos, sin, half, head_dim, eps, weight_offset,
            INTERLEAVED, ROUND_FIRST, TILE_HALF, TILE_REST,
        )  # fmt: skip
        from_ptr = value_ptr + token * stride_value_token + heads * stride_value_head + dims
        value = tl.load(from_ptr, mask=dim_mask, other=0.0)
        if k_scale_ptr is not None:
            a, b, rest = a.to(tl.float32), b.to(tl.float32), rest.to(tl.float32)
            most = tl.maximum(tl.maximum(largest(a), largest(b)), largest(rest))
            scales = k_scale_ptr + block * stride_k_scale_block + offset * stride_k_scale_slot
            scales += head * stride_k_scale_head
            inverse = head_scales(most, scales, head_mask, K_DYNAMIC, IS_INT8)
            a = codes_of(a, inverse, IS_INT8, HARDWARE)
            b = codes_of(b, inverse, IS_INT8, HARDWARE)
            rest = codes_of(rest, inverse, IS_INT8, HARDWARE)
            scales = v_scale_ptr + block * stride_v_scale_block + offset * stride_v_scale_slot
            scales += head * stride_v_scale_head
            store_quantised(
                value.to(tl.float32), dim_mask, value_cache_ptr + at + dims, scales, head_mask,
                V_DYNAMIC, IS_INT8, HARDWARE,
            )  # fmt: skip
        else:
            dtype = key_cache_ptr.dtype.element_ty
            a, b, rest = a.to(dtype), b.to(dtype), rest.to(dtype)
            tl.store(value_cache_ptr + at + dims, value.to(dtype), mask=dim_mask)
        _store_pairs(key_cache_ptr + at, a, b, mask, half, INTERLEAVED, TILE_HALF)
        tl.store(key_cache_ptr + at + rest_offs, rest, mask=mask & rest_mask)
