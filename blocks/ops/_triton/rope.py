"""Rotary embedding of query and key in one launch."""

import triton
import triton.language as tl


@triton.jit
def _turn_heads(
    in_ptr, out_ptr, stride_in_head, stride_out_head, first_head, num_heads,
    cos,  # [TILE_HALF]
    sin,  # [TILE_HALF]
    half, head_dim,
    INTERLEAVED: tl.constexpr, TILE_HEADS: tl.constexpr, TILE_HALF: tl.constexpr,
    TILE_REST: tl.constexpr,
):  # fmt: skip
    """Turn heads [first_head, first_head + TILE_HEADS) of one token; copy what does not turn."""
    heads = (first_head + tl.arange(0, TILE_HEADS)).to(tl.int64)
    pairs = tl.arange(0, TILE_HALF)
    head_mask = (heads < num_heads)[:, None]
    mask = head_mask & (pairs < half)[None, :]
    first = (2 * pairs if INTERLEAVED else pairs)[None, :]
    step = 1 if INTERLEAVED else half
    from_ptr = in_ptr + heads[:, None] * stride_in_head
    to_ptr = out_ptr + heads[:, None] * stride_out_head
    dtype = out_ptr.dtype.element_ty
    a = tl.load(from_ptr + first, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(from_ptr + first + step, mask=mask, other=0.0).to(tl.float32)
    turned_a = a * cos[None, :] - b * sin[None, :]
    turned_b = b * cos[None, :] + a * sin[None, :]
    tl.store(to_ptr + first, turned_a.to(dtype), mask=mask)
    tl.store(to_ptr + first + step, turned_b.to(dtype), mask=mask)
    if TILE_REST > 0:
        rest = 2 * half + tl.arange(0, TILE_REST)[None, :]
        rest_mask = head_mask & (rest < head_dim)
        tl.store(to_ptr + rest, tl.load(from_ptr + rest, mask=rest_mask, other=0.0), mask=rest_mask)


@triton.jit
def _rope_kernel(
    query_ptr,  # [num_tokens, num_heads, head_dim]; each head contiguous, as in the next three
    stride_query_token, stride_query_head,
    key_ptr,  # [num_tokens, num_kv_heads, head_dim]
    stride_key_token, stride_key_head,
    query_out_ptr,  # may be query_ptr
    stride_query_out_token, stride_query_out_head,
    key_out_ptr,  # may be key_ptr
    stride_key_out_token, stride_key_out_head,
    positions_ptr,  # [num_tokens]
    cos_sin_ptr,  # [max_positions, 2 * half]
    num_heads, num_kv_heads, half, head_dim,
    INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, TILE_HEADS: tl.constexpr,
    TILE_HALF: tl.constexpr, TILE_REST: tl.constexpr,
):  # fmt: skip
    """One program owns TILE_HEADS heads of one token, of the query first, then of the key.

    Grid: num_tokens * (tiles of query heads + tiles of key heads), those of a token side by side.
    TILE_HALF covers half; TILE_REST covers the dimensions that do not turn; 0 where there are none
    or they stay in place. INVERSE turns back, which is also the gradient of turning.
    """
    query_tiles = tl.cdiv(num_heads, TILE_HEADS)
    tiles = query_tiles + tl.cdiv(num_kv_heads, TILE_HEADS)
    token = (tl.program_id(0) // tiles).to(tl.int64)
    tile = tl.program_id(0) % tiles
    pairs = tl.arange(0, TILE_HALF)
    position = tl.load(positions_ptr + token).to(tl.int64)
    row_ptr = cos_sin_ptr + position * 2 * half + pairs
    cos = tl.load(row_ptr, mask=pairs < half, other=0.0)
    sin = tl.load(row_ptr + half, mask=pairs < half, other=0.0)
    if INVERSE:
        sin = -sin
    if tile < query_tiles:
        _turn_heads(
            query_ptr + token * stride_query_token, query_out_ptr + token * stride_query_out_token,
            stride_query_head, stride_query_out_head, tile * TILE_HEADS, num_heads, cos, sin, half,
            head_dim, INTERLEAVED, TILE_HEADS, TILE_HALF, TILE_REST,
        )  # fmt: skip
    else:
        _turn_heads(
            key_ptr + token * stride_key_token, key_out_ptr + token * stride_key_out_token,
            stride_key_head, stride_key_out_head, (tile - query_tiles) * TILE_HEADS, num_kv_heads,
            cos, sin, half, head_dim, INTERLEAVED, TILE_HEADS, TILE_HALF, TILE_REST,
        )  # fmt: skip
