"""Where keys and values lie, how a tile of them is loaded, and the two products with it."""

import triton
import triton.language as tl

from blocks.attention._triton.softmax import product


@triton.jit
def kv_rows(
    table_ptr, offs_kv, mask_kv, key_start, num_blocks, stride_block, stride_slot,
    PAGED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Offsets of key rows in elements, and which may be read; ids outside the cache may not."""
    if PAGED:
        ids = tl.load(table_ptr + offs_kv // BLOCK_SIZE, mask=mask_kv, other=0)
        mask_kv = mask_kv & (ids >= 0) & (ids < num_blocks)
        rows = ids.to(tl.int64) * stride_block + (offs_kv % BLOCK_SIZE).to(tl.int64) * stride_slot
    else:
        rows = (key_start + offs_kv).to(tl.int64) * stride_slot
    return rows, mask_kv


@triton.jit
def load_tile(
    ptr, table_ptr, offs_kv, mask_kv, key_start, num_blocks, stride_block, stride_slot,
    HEAD_DIM: tl.constexpr, TILE_D: tl.constexpr, PAGED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Keys or values of one head at positions ``offs_kv``, zeros where not to be read.

    ``ptr`` points at the head. [TILE_KV, TILE_D], or [TILE_D, TILE_KV] when TRANSPOSED. Quantised
    ones come as stored (``unpack`` makes numbers of them).
    """
    offs_d = tl.arange(0, TILE_D)
    mask_d = offs_d < HEAD_DIM
    rows, mask_kv = kv_rows(
        table_ptr, offs_kv, mask_kv, key_start, num_blocks, stride_block, stride_slot, PAGED,
        BLOCK_SIZE,
    )  # fmt: skip
    if TRANSPOSED:
        mask = mask_kv[None, :] & mask_d[:, None]
        offsets = rows[None, :] + offs_d[:, None]
    else:
        mask = mask_kv[:, None] & mask_d[None, :]
        offsets = rows[:, None] + offs_d[None, :]
    return tl.load(ptr + offsets, mask=mask, other=0.0)


@triton.jit
def unpack(stored, DTYPE: tl.constexpr, INTERPRET: tl.constexpr):
    """Stored keys or values as numbers of DTYPE, exactly; their scale is not applied.

    Bytes are float8 e4m3 where the chip cannot convert it: exponent and mantissa are moved to those
    of a float16, which is too small by 2^8 then, subnormals included. (The interpreter makes wrong
    bfloat16 of integers, but right ones of float32.)
    """
    if stored.dtype == tl.uint8:
        bits = stored.to(tl.uint16)
        half = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True) * 256.0
        stored = tl.where((bits & 0x7F) == 0x7F, float("nan"), half)
    if INTERPRET:
        stored = stored.to(tl.float32)
    return stored.to(DTYPE)


@triton.jit
def load_scale(ptr, kv_head, KIND: tl.constexpr):
    """The scale all keys (or values) of a head share; 1 where each position has its own."""
    scale = 1.0
    if KIND == "tensor":
        scale = tl.load(ptr)
    if KIND == "head":
        scale = tl.load(ptr + kv_head)
    return scale


@triton.jit
def load_scales(
    ptr, table_ptr, offs_kv, mask_kv, kv_head, num_kv_heads, num_blocks,
    KIND: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """Scales of the positions ``offs_kv`` [TILE_KV], zeros where not to be read.

    KIND is ``block`` ([num_blocks, num_kv_heads]) or ``token``
    ([num_blocks, BLOCK_SIZE, num_kv_heads]); contiguous.
    """
    SLOTS: tl.constexpr = BLOCK_SIZE if KIND == "token" else 1
    rows, mask_kv = kv_rows(
        table_ptr,
        offs_kv,
        mask_kv,
        0,
        num_blocks,
        SLOTS * num_kv_heads,
        num_kv_heads if KIND == "token" else 0,
        True,
        BLOCK_SIZE,
    )
    return tl.load(ptr + rows + kv_head, mask=mask_kv, other=0.0)


@triton.jit
def key_products(
    q, offs_kv, mask_kv, key_ptr, scale_ptr, table_ptr, key_start, kv_head, num_kv_heads,
    num_blocks, stride_block, stride_slot,
    HEAD_DIM: tl.constexpr, PAGED: tl.constexpr, BLOCK_SIZE: tl.constexpr, SCALE: tl.constexpr,
    INTERPRET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``q . key`` [rows, keys] of the keys at ``offs_kv``; scales of positions are in it."""
    k = load_tile(
        key_ptr, table_ptr, offs_kv, mask_kv, key_start, num_blocks, stride_block, stride_slot,
        HEAD_DIM, q.shape[1], PAGED, BLOCK_SIZE, True,
    )  # fmt: skip
    none = tl.zeros([q.shape[0], offs_kv.shape[0]], tl.float32)
    products = product(q, unpack(k, q.dtype, INTERPRET), none, INTERPRET, PRECISION)
    if SCALE == "block" or SCALE == "token":
        products *= load_scales(
            scale_ptr,
            table_ptr,
            offs_kv,
            mask_kv,
            kv_head,
            num_kv_heads,
            num_blocks,
            SCALE,
            BLOCK_SIZE,
        )[None, :]
    return products


@triton.jit
def add_values(
    weights, acc, offs_kv, mask_kv, value_ptr, scale_ptr, table_ptr, key_start, kv_head,
    num_kv_heads, num_blocks, stride_block, stride_slot,
    DTYPE: tl.constexpr, HEAD_DIM: tl.constexpr, PAGED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SCALE: tl.constexpr, INTERPRET: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``acc + weights . value`` [rows, TILE_D], multiplied in DTYPE.

    Scales of positions go into the weights, which are fewer than the values; but not in float16,
    whose range small ones leave.
    """
    v = load_tile(
        value_ptr, table_ptr, offs_kv, mask_kv, key_start, num_blocks, stride_block, stride_slot,
        HEAD_DIM, acc.shape[1], PAGED, BLOCK_SIZE, False,
    )  # fmt: skip
    v = unpack(v, DTYPE, INTERPRET)
    if SCALE == "block" or SCALE == "token":
        scales = load_scales(
            scale_ptr, table_ptr, offs_kv, mask_kv, kv_head, num_kv_heads, num_blocks, SCALE,
            BLOCK_SIZE,
        )  # fmt: skip
        if DTYPE == tl.float16:
            v = (v.to(tl.float32) * scales[:, None]).to(DTYPE)
        else:
            weights *= scales[None, :]
    return product(weights.to(DTYPE), v, acc, INTERPRET, PRECISION)
