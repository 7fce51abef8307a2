"""Scatter of new keys and values into their slots."""

import triton
import triton.language as tl


@triton.jit
def write_kv_kernel(
    key_ptr,  # [num_tokens, row_size]
    stride_key_token,
    value_ptr,  # [num_tokens, row_size]
    stride_value_token,
    key_cache_ptr,  # [num_blocks, BLOCK_SIZE, row_size]
    value_cache_ptr,  # [num_blocks, BLOCK_SIZE, row_size]
    stride_block,  # of both caches
    stride_slot,
    slot_mapping_ptr,  # [num_tokens]
    num_slots,
    row_size,  # num_kv_heads * head_dim
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """One program owns TILE elements of one token's key row and value row.

    Grid [num_tokens, ceil(row_size / TILE)]. Reads the token's slot, then the elements, and stores
    them. A slot outside [0, num_slots) masks everything, so a skipped token costs one load. The
    host guarantees that rows are contiguous, that all four tensors have one dtype, and that no
    slot is named twice.
    """
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token)
    offs = tl.program_id(1).to(tl.int64) * TILE + tl.arange(0, TILE)
    mask = (offs < row_size) & (slot >= 0) & (slot < num_slots)
    at = (slot // BLOCK_SIZE) * stride_block + (slot % BLOCK_SIZE) * stride_slot + offs
    key = tl.load(key_ptr + token * stride_key_token + offs, mask=mask, other=0.0)
    value = tl.load(value_ptr + token * stride_value_token + offs, mask=mask, other=0.0)
    tl.store(key_cache_ptr + at, key, mask=mask)
    tl.store(value_cache_ptr + at, value, mask=mask)
