"""New keys and values into their slots: the one place where cache memory is written token-wise."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from blocks._checks import check_dtype, check_same_device, check_shape, fail
from blocks._impl import choose_impl
from blocks._work import Work
from blocks.kv import reference

HAS = ("reference", "torch")
CACHE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def write_kv(
    key: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    value: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    key_cache: Float[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Float[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    slot_mapping: Int64[Tensor, "num_tokens"],
    *,
    impl: str | None = None,
) -> None:
    """Write each token's key and value into its slot of the paged cache, in place.

    Args:
        key: new keys; converted to the cache's dtype.
        value: new values.
        key_cache: one layer's keys, written in place; the last two dimensions contiguous.
        value_cache: one layer's values, likewise.
        slot_mapping: ``block_id * block_size + offset`` for each token, -1 to skip it. No slot
            twice: which write stays would be undefined.
        impl: None for the fastest on this device.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit; on the CPU also a slot
            beyond the cache, before anything is written. On an accelerator such a slot is skipped:
            looking would mean waiting for the device.

    Reference: Kwon et al., 2023, PagedAttention, section 5.1.
    """
    _check(key, value, key_cache, value_cache, slot_mapping)
    chosen = choose_impl(impl, HAS, key_cache)
    if key.shape[0] == 0:
        return
    if key_cache.device.type == "cpu":
        slot_mapping = _check_slots(slot_mapping, key_cache.shape[0] * key_cache.shape[1])
    if chosen == "reference":
        reference.write_kv(key, value, key_cache, value_cache, slot_mapping)
    else:
        _write_torch(key, value, key_cache, value_cache, slot_mapping)


def write_kv_work(num_tokens: int, num_kv_heads: int, head_dim: int, itemsize: int) -> Work:
    """Every key and value is read once and written once, every slot read once."""
    return Work(flops=0, bytes=num_tokens * (4 * num_kv_heads * head_dim * itemsize + 8))


def _write_torch(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    keep = slots >= 0
    if not bool(keep.all()):
        key, value, slots = key[keep], value[keep], slots[keep]
    for new, cache in ((key, key_cache), (value, value_cache)):
        cache.view(-1, *cache.shape[2:]).index_copy_(0, slots, new.to(cache.dtype))


def _check(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    check_dtype("key_cache", key_cache, CACHE_DTYPES)
    check_dtype("value_cache", value_cache, (key_cache.dtype,), "keys and values share a dtype")
    check_dtype("slot_mapping", slots, (torch.int64,), "slots are int64")
    check_shape("key_cache", key_cache, ("num_blocks", "block_size", "num_kv_heads", "head_dim"))
    check_shape("value_cache", value_cache, tuple(key_cache.shape), "as key_cache")
    check_shape("slot_mapping", slots, ("num_tokens",))
    expected = (slots.shape[0], *key_cache.shape[2:])
    check_shape("key", key, expected, "one row per slot, heads as in key_cache")
    check_shape("value", value, expected, "one row per slot, heads as in value_cache")
    check_same_device(
        key=key, value=value, key_cache=key_cache, value_cache=value_cache, slot_mapping=slots
    )


def _check_slots(slots: Tensor, num_slots: int) -> Tensor:
    low, high = (int(bound) for bound in torch.aminmax(slots))
    if low < -1 or high >= num_slots:
        got = low if low < -1 else high
        raise fail("slot_mapping", f"slots from 0 to {num_slots - 1}, or -1 to skip", got)
    return slots
