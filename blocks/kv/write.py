"""New keys and values into their slots: the one place where cache memory is written token-wise."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64, Num
from torch import Tensor

from blocks import _native
from blocks._checks import check_dtype, check_same_device, check_shape, expects_tensors, fail
from blocks._impl import choose_impl
from blocks._work import Work
from blocks.kv import _quantised, reference
from blocks.kv.scales import LIMITS, checked_scales

HAS = ("reference", "torch", "native", "triton")
CACHE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, *LIMITS)
MAX_TILE = 2048
"""Most elements of a row that one program of the Triton kernel moves."""


@expects_tensors
def write_kv(
    key: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    value: Float[Tensor, "num_tokens num_kv_heads head_dim"],
    key_cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    value_cache: Num[Tensor, "num_blocks block_size num_kv_heads head_dim"],
    slot_mapping: Int64[Tensor, "num_tokens"],
    *,
    k_scale: Float32[Tensor, "..."] | None = None,
    v_scale: Float32[Tensor, "..."] | None = None,
    impl: str | None = None,
) -> None:
    """Write each token's key and value into its slot of the paged cache, in place.

    No gradient flows through the cache. A cache of float8_e4m3fn or int8 is quantised: what is
    stored is ``value / scale`` to the nearest, ties to even, saturated. NaN stays NaN in fp8 and
    becomes 0 in int8.

    Args:
        key: new keys; converted to the cache's dtype.
        value: new values.
        key_cache: one layer's keys, written in place; the elements of a slot contiguous.
        value_cache: one layer's values, likewise, with the strides of ``key_cache``.
        slot_mapping: ``block_id * block_size + offset`` for each token, -1 to skip it. No slot
            twice: which write stays would be undefined.
        k_scale, v_scale: for a quantised cache, float32: ``[]``, ``[num_kv_heads]`` or
            ``[num_blocks, num_kv_heads]`` are read; ``[num_blocks, block_size, num_kv_heads]`` are
            measured (each token's and head's largest magnitude is stored as the largest number
            there is) and written in place. A NaN then makes its scale NaN, in either dtype. None is
            1 for fp8; int8 needs both.
        impl: None for the fastest on this device.

    Raises:
        ValueError, TypeError: shapes, dtypes, strides or devices that do not fit; on the CPU also
            a slot beyond the cache, before anything is written. On an accelerator such a slot is
            skipped: looking would mean waiting for the device. Nor are scales looked at there;
            on the CPU those that are read must be positive and finite.

    Reference: Kwon et al., 2023, PagedAttention, section 5.1.
    """
    check_caches(key, value, key_cache, value_cache, slot_mapping)
    chosen = choose_impl(impl, HAS, key_cache)
    if k_scale is not None or v_scale is not None or key_cache.dtype in LIMITS:
        scales = checked_scales(key_cache, k_scale, v_scale)
        if scales is not None:
            new, caches = (key.detach(), value.detach()), (key_cache, value_cache)
            _write_quantised(chosen, new, caches, scales, slot_mapping)
            return
    if key.dtype != key_cache.dtype:
        key, value = key.to(key_cache.dtype), value.to(key_cache.dtype)
    if key.requires_grad or value.requires_grad:
        key, value = key.detach(), value.detach()
    if chosen == "native":
        _write_native(key, value, key_cache, value_cache, slot_mapping)
    elif chosen == "triton":
        _write_triton(key, value, key_cache, value_cache, slot_mapping)
    elif chosen == "torch":
        _write_torch(key, value, key_cache, value_cache, slot_mapping)
    else:
        check_slots(slot_mapping, key_cache)
        reference.write_kv(key, value, key_cache, value_cache, slot_mapping)


def write_kv_work(
    num_tokens: int,
    num_kv_heads: int,
    head_dim: int,
    itemsize: int,
    *,
    cache_itemsize: int | None = None,
    token_scales: bool = False,
) -> Work:
    """Every key and value is read once and written once, every slot read once.

    ``cache_itemsize`` where it is not that of the inputs; ``token_scales`` are written beside.
    """
    element = itemsize + (itemsize if cache_itemsize is None else cache_itemsize)
    row = head_dim * element + 4 * token_scales
    return Work(flops=0, bytes=num_tokens * (2 * num_kv_heads * row + 8))


def _write_quantised(
    chosen: str,
    new: tuple[Tensor, Tensor],
    caches: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor],
    slots: Tensor,
) -> None:
    if chosen == "native":
        if new[0].dtype not in (torch.bfloat16, torch.float32):
            new = (new[0].float(), new[1].float())
        slots = slots.contiguous()
        bad = _quantised.write_native((_rows(new[0]), _rows(new[1])), caches, scales, slots)
        if bad >= 0:
            raise bad_slot(int(slots[bad]), caches[0])
        return
    if slots.device.type == "cpu":
        check_slots(slots, caches[0])
        _quantised.check_scale_values(caches, scales, slots)
    if chosen == "triton" and slots.shape[0] > 0:
        _quantised.write_triton((_rows(new[0]), _rows(new[1])), caches, scales, slots)
    elif chosen == "torch":
        _quantised.write_torch(new, caches, scales, slots)
    elif chosen == "reference":
        reference.write_kv(*new, *caches, slots, k_scale=scales[0], v_scale=scales[1])


def _write_torch(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    check_slots(slots, key_cache)
    keep = slots >= 0
    if not bool(keep.all()):
        key, value, slots = key[keep], value[keep], slots[keep]
    if key_cache.stride(0) == key_cache.shape[1] * key_cache.stride(1):
        key_cache.flatten(0, 1).index_copy_(0, slots, key)
        value_cache.flatten(0, 1).index_copy_(0, slots, value)
    else:
        where = (slots // key_cache.shape[1], slots % key_cache.shape[1])
        key_cache[where], value_cache[where] = key, value


def _write_native(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    num_blocks, block_size, num_kv_heads, head_dim = key_cache.shape
    itemsize = key_cache.element_size()
    key, value = _rows(key), _rows(value)
    slots = slots.contiguous()
    block_stride, slot_stride, _, _ = key_cache.stride()
    bad = _library().write_kv(
        key.data_ptr(),
        key.stride(0) * itemsize,
        value.data_ptr(),
        value.stride(0) * itemsize,
        key_cache.data_ptr(),
        value_cache.data_ptr(),
        block_stride * itemsize,
        slot_stride * itemsize,
        slots.data_ptr(),
        slots.shape[0],
        num_blocks * block_size,
        block_size,
        num_kv_heads * head_dim * itemsize,
    )
    if bad >= 0:
        raise bad_slot(int(slots[bad]), key_cache)


@functools.cache
def _library() -> Any:
    library = _native.load(Path(__file__).parent / "_native" / "write.cpp")
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.write_kv.restype = size
    library.write_kv.argtypes = [
        *(pointer, size, pointer, size),  # key, value and their strides
        *(pointer, pointer, size, size),  # caches, block and slot stride
        *(pointer, size, size, size, size),  # slots and sizes
    ]
    return library


def _write_triton(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    from blocks.kv._triton.write import write_kv_kernel

    if key.shape[0] == 0:
        return
    if key_cache.device.type == "cpu":  # the interpreter: nothing to wait for
        check_slots(slots, key_cache)
    num_blocks, block_size, num_kv_heads, head_dim = key_cache.shape
    key, value = _rows(key), _rows(value)
    row_size = num_kv_heads * head_dim
    tile = min(MAX_TILE, 1 << (row_size - 1).bit_length())
    launch: Any = write_kv_kernel[(slots.shape[0], -(-row_size // tile))]
    launch(
        key,
        key.stride(0),
        value,
        value.stride(0),
        key_cache,
        value_cache,
        key_cache.stride(0),
        key_cache.stride(1),
        slots.contiguous(),
        num_blocks * block_size,
        row_size,
        BLOCK_SIZE=block_size,
        TILE=tile,
        num_warps=max(1, tile // 512),  # eight elements or more a thread: 16-byte accesses
    )


def _rows(new: Tensor) -> Tensor:
    """``new`` itself if each token's elements are contiguous, else a copy."""
    head_dim = new.shape[2]
    ready = new.stride(2) == 1 and (new.stride(1) == head_dim or new.shape[1] == 1)
    return new if ready else new.contiguous()


def check_caches(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor
) -> None:
    """Refuse what does not fit; the usual case is decided by a few comparisons."""
    shape, stride = key_cache.shape, key_cache.stride()
    if (
        key_cache.dtype in CACHE_DTYPES
        and value_cache.dtype == key_cache.dtype
        and key.dtype == value.dtype
        and key.is_floating_point()
        and slots.dtype == torch.int64
        and slots.dim() == 1
        and len(shape) == 4
        and value_cache.shape == shape
        and key.shape == value.shape == (*slots.shape, *shape[2:])
        and value_cache.stride() == stride
        and stride[2:] == (shape[3], 1)
        and key.device == value.device == key_cache.device == value_cache.device == slots.device
    ):
        return
    check_dtype("key_cache", key_cache, CACHE_DTYPES)
    check_dtype("value_cache", value_cache, (key_cache.dtype,), "keys and values share a dtype")
    if not key.is_floating_point():
        check_dtype("key", key, CACHE_DTYPES)
    check_dtype("value", value, (key.dtype,), "keys and values share a dtype")
    check_dtype("slot_mapping", slots, (torch.int64,), "slots are int64")
    check_shape("key_cache", key_cache, ("num_blocks", "block_size", "num_kv_heads", "head_dim"))
    check_shape("value_cache", value_cache, tuple(shape), "as key_cache")
    check_shape("slot_mapping", slots, ("num_tokens",))
    expected = (slots.shape[0], *shape[2:])
    check_shape("key", key, expected, "one row per slot, heads as in key_cache")
    check_shape("value", value, expected, "one row per slot, heads as in value_cache")
    check_same_device(
        key=key, value=value, key_cache=key_cache, value_cache=value_cache, slot_mapping=slots
    )
    wanted = f"equal strides ending in {(shape[3], 1)}"
    got = f"{stride} and {value_cache.stride()}"
    raise fail("key_cache and value_cache", wanted, got, "take views of one KVCache")


def check_slots(slots: Tensor, key_cache: Tensor) -> None:
    """Refuse slots beyond the cache; waits for the device if they are on one."""
    num_slots = key_cache.shape[0] * key_cache.shape[1]
    for slot in torch.aminmax(slots) if slots.numel() else ():
        if not -1 <= int(slot) < num_slots:
            raise bad_slot(int(slot), key_cache)


def bad_slot(slot: int, key_cache: Tensor) -> ValueError:
    """Says which slots there are."""
    last = key_cache.shape[0] * key_cache.shape[1] - 1
    return fail("slot_mapping", f"slots from 0 to {last}, or -1 to skip", slot)
