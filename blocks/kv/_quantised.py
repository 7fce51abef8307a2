"""The quantised half of `write_kv`: torch, native and Triton implementations."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocks import _native
from blocks._checks import fail
from blocks.kv.scales import LIMITS, SMALLEST, quantise, scale_kind, spread_scale, token_scale

TILE = 1024
"""Elements of key one program of the Triton kernel quantises, and as many of value."""


def write_torch(
    new: tuple[Tensor, Tensor],
    caches: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor],
    slots: Tensor,
) -> None:
    """Slots were looked at; -1 is skipped here."""
    keep = slots >= 0
    if not bool(keep.all()):
        new, slots = (new[0][keep], new[1][keep]), slots[keep]
    block_size = caches[0].shape[1]
    where = (slots // block_size, slots % block_size)
    for x, cache, scale in zip(new, caches, scales, strict=True):
        if scale_kind("scale", scale, cache) == "token":
            scale[where] = token_scale(x, cache.dtype)
        found = spread_scale(scale, cache)[where]  # [num_tokens, num_kv_heads]
        codes = quantise(x, found.unsqueeze(-1), cache.dtype)
        cache.view(torch.uint8)[where] = codes.view(torch.uint8)


class NativeCache(ctypes.Structure):
    """A quantised cache with its scales, as ``quantise::Cache`` of the C++ code."""

    _fields_ = [
        ("codes", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("block_stride", "slot_stride")),
        ("scales", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("block", "slot", "head", "dynamic")),
    ]


def native_cache(cache: Tensor, scale: Tensor | None) -> NativeCache:
    """``cache`` and ``scale`` described for the C++ code; they must outlive the description."""
    if scale is None:
        return NativeCache(cache.data_ptr(), *cache.stride()[:2])
    dynamic = scale_kind("scale", scale, cache) == "token"
    spread = spread_scale(scale, cache)
    places = (*cache.stride()[:2], scale.data_ptr(), *spread.stride(), dynamic)
    return NativeCache(cache.data_ptr(), *places)


def native_format(cache: Tensor) -> int:
    """Number of the cache's format in the C++ code."""
    return list(LIMITS).index(cache.dtype)


def write_native(
    new: tuple[Tensor, Tensor],
    caches: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor],
    slots: Tensor,
) -> int:
    """The first token with a slot out of range, or -1; rows must be contiguous, slots too."""
    key, value = new
    num_blocks, block_size, num_kv_heads, head_dim = caches[0].shape
    described = [native_cache(c, s) for c, s in zip(caches, scales, strict=True)]
    bad = _functions()[key.dtype](
        key.data_ptr(),
        key.stride(0),
        value.data_ptr(),
        value.stride(0),
        *(ctypes.byref(cache) for cache in described),
        slots.data_ptr(),
        slots.shape[0],
        num_blocks * block_size,
        block_size,
        num_kv_heads,
        head_dim,
        native_format(caches[0]),
    )
    if bad == -2:
        raise bad_scale(caches, scales, slots)
    return bad


@functools.cache
def _functions() -> dict[torch.dtype, Callable[..., int]]:
    library = _native.load(Path(__file__).parent / "_native" / "write.cpp")
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    found = {
        torch.bfloat16: library.write_quantised_bf16,
        torch.float32: library.write_quantised_f32,
    }
    for function in found.values():
        function.restype = size
        function.argtypes = [
            *(pointer, size, pointer, size, pointer, pointer),
            *(pointer, size, size, size, size, size, ctypes.c_int),
        ]
    return found


def check_scale_values(
    caches: tuple[Tensor, Tensor], scales: tuple[Tensor, Tensor], slots: Tensor
) -> None:
    """Refuse scales to be read that are not positive and finite; CPU tensors only."""
    slots = slots[slots >= 0]
    for cache, scale in zip(caches, scales, strict=True):
        if scale_kind("scale", scale, cache) == "token" or not slots.numel():
            continue
        read = spread_scale(scale, cache)[slots // cache.shape[1], slots % cache.shape[1]]
        if not bool(((read >= SMALLEST) & read.isfinite()).all()):
            raise bad_scale(caches, scales, slots)


def bad_scale(
    caches: tuple[Tensor, Tensor], scales: tuple[Tensor, Tensor], slots: Tensor
) -> ValueError:
    """Says what the scales that would be read are."""
    slots = slots[slots >= 0]
    where = (slots // caches[0].shape[1], slots % caches[0].shape[1])
    read = [spread_scale(s, c)[where] for c, s in zip(caches, scales, strict=True)]
    got = ", ".join(f"{x.min():g} to {x.max():g}" for x in read)
    return fail("k_scale, v_scale", f"finite numbers of at least {SMALLEST:g}", got)


def write_triton(
    new: tuple[Tensor, Tensor],
    caches: tuple[Tensor, Tensor],
    scales: tuple[Tensor, Tensor],
    slots: Tensor,
) -> None:
    """One launch; heads must be contiguous."""
    from blocks.kv._triton.write_quantised import write_quantised_kernel

    key, value = new
    num_blocks, block_size, num_kv_heads, head_dim = caches[0].shape
    tile_heads, tile_dim = quantised_tiles(num_kv_heads, head_dim)
    launch: Any = write_quantised_kernel[(slots.shape[0], -(-num_kv_heads // tile_heads))]
    launch(
        *(part for x in (key, value) for part in (x, *x.stride()[:2])),
        *(cache.view(torch.uint8) for cache in caches),
        *caches[0].stride()[:2],
        *scale_arguments(caches, scales),
        slots.contiguous(),
        num_blocks * block_size,
        num_kv_heads,
        head_dim,
        BLOCK_SIZE=block_size,
        TILE_HEADS=tile_heads,
        TILE_DIM=tile_dim,
        **format_arguments(caches, scales),
        num_warps=max(1, tile_heads * tile_dim // 256),
    )


def scale_arguments(caches: tuple[Tensor, Tensor], scales: tuple[Tensor, Tensor]) -> list[Any]:
    """Both scales as kernels take them: pointer and strides over block, slot and head."""
    spread = [spread_scale(s, c) for c, s in zip(caches, scales, strict=True)]
    return [part for x in spread for part in (x, *x.stride())]


def format_arguments(
    caches: tuple[Tensor, Tensor], scales: tuple[Tensor, Tensor]
) -> dict[str, bool]:
    """Compile-time choices of kernels that quantise."""
    return {
        "K_DYNAMIC": scale_kind("k_scale", scales[0], caches[0]) == "token",
        "V_DYNAMIC": scale_kind("v_scale", scales[1], caches[1]) == "token",
        "IS_INT8": caches[0].dtype == torch.int8,
        "HARDWARE": converts_to_fp8(caches[0].device),
    }


@functools.cache
def converts_to_fp8(device: torch.device) -> bool:
    """Whether the chip has instructions to e4m3: Nvidia's from compute capability 8.9 on."""
    if device.type != "cuda" or torch.version.hip is not None:
        return False
    return torch.cuda.get_device_capability(device) >= (8, 9)


def quantised_tiles(num_heads: int, head_dim: int) -> tuple[int, int]:
    """Heads and dimensions of a program's tile."""
    tile_dim = 1 << (head_dim - 1).bit_length()
    most = max(1, TILE // tile_dim)
    return min(most, 1 << (num_heads - 1).bit_length()), tile_dim
