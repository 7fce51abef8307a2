"""Scatter of new keys and values into a quantised cache."""

import triton
import triton.language as tl

from blocks.kv._triton.quantise import store_quantised


@triton.jit
def write_quantised_kernel(
    key_ptr,  # [num_tokens, num_heads, head_dim]; each head contiguous, as in value
    stride_key_token, stride_key_head, value_ptr, stride_value_token, stride_value_head,
    key_cache_ptr,  # [num_blocks, BLOCK_SIZE, num_heads, head_dim] uint8
    value_cache_ptr,
    stride_block,  # of both caches
    stride_slot,
    k_scale_ptr,  # [num_blocks, BLOCK_SIZE, num_heads] fp32; strides of 0 where it does not vary
    stride_k_scale_block, stride_k_scale_slot, stride_k_scale_head, v_scale_ptr,
    stride_v_scale_block, stride_v_scale_slot, stride_v_scale_head,
    slot_mapping_ptr,  # [num_tokens]
    num_slots, num_heads, head_dim,
    BLOCK_SIZE: tl.constexpr, TILE_HEADS: tl.constexpr, TILE_DIM: tl.constexpr,
    K_DYNAMIC: tl.constexpr, V_DYNAMIC: tl.constexpr, IS_INT8: tl.constexpr, HARDWARE: tl.constexpr,
):  # fmt: skip
    """One program owns TILE_HEADS heads of one token's key and value: reads, scales, stores them.

    Grid [num_tokens, ceil(num_heads / TILE_HEADS)]. A slot outside [0, num_slots) masks everything.
    The host guarantees TILE_DIM >= head_dim and that no slot is named twice.
    """
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping_ptr + token)
    block, offset = slot // BLOCK_SIZE, slot % BLOCK_SIZE
    heads = (tl.program_id(1) * TILE_HEADS + tl.arange(0, TILE_HEADS)).to(tl.int64)
    dims = tl.arange(0, TILE_DIM)
    head_mask = (heads < num_heads) & (slot >= 0) & (slot < num_slots)
    mask = head_mask[:, None] & (dims < head_dim)[None, :]
    at = block * stride_block + offset * stride_slot + heads[:, None] * head_dim + dims[None, :]

    key_ptrs = key_ptr + token * stride_key_token + heads[:, None] * stride_key_head + dims[None, :]
    key = tl.load(key_ptrs, mask=mask, other=0.0).to(tl.float32)
    k_scales = k_scale_ptr + block * stride_k_scale_block + offset * stride_k_scale_slot
    k_scales += heads * stride_k_scale_head
    store_quantised(
        key, mask, key_cache_ptr + at, k_scales, head_mask, K_DYNAMIC, IS_INT8, HARDWARE
    )
    value_ptrs = value_ptr + token * stride_value_token + heads[:, None] * stride_value_head
    value = tl.load(value_ptrs + dims[None, :], mask=mask, other=0.0).to(tl.float32)
    v_scales = v_scale_ptr + block * stride_v_scale_block + offset * stride_v_scale_slot
    v_scales += heads * stride_v_scale_head
    store_quantised(
        value, mask, value_cache_ptr + at, v_scales, head_mask, V_DYNAMIC, IS_INT8, HARDWARE
    )
