"""Where keys and values lie, and how a tile of them is loaded."""

import triton
import triton.language as tl


@triton.jit
def kv_rows(
    table_ptr,
    offs_kv,
    mask_kv,
    key_start,
    num_blocks,
    stride_block,
    stride_slot,
    PAGED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
):
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
    ptr,
    table_ptr,
    offs_kv,
    mask_kv,
    key_start,
    num_blocks,
    stride_block,
    stride_slot,
    HEAD_DIM: tl.constexpr,
    TILE_D: tl.constexpr,
    PAGED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Keys or values of one head at positions ``offs_kv``, zeros where not to be read.

    ``ptr`` points at the head. [TILE_KV, TILE_D], or [TILE_D, TILE_KV] when TRANSPOSED.
    """
    offs_d = tl.arange(0, TILE_D)
    mask_d = offs_d < HEAD_DIM
    rows, mask_kv = kv_rows(
        table_ptr,
        offs_kv,
        mask_kv,
        key_start,
        num_blocks,
        stride_block,
        stride_slot,
        PAGED,
        BLOCK_SIZE,
    )
    if TRANSPOSED:
        mask = mask_kv[None, :] & mask_d[:, None]
        offsets = rows[None, :] + offs_d[:, None]
    else:
        mask = mask_kv[:, None] & mask_d[None, :]
        offsets = rows[:, None] + offs_d[None, :]
    return tl.load(ptr + offsets, mask=mask, other=0.0)
