"""The fast implementations of `rope_write_kv`: C++ and Triton."""

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocks import _native
from blocks._checks import fail
from blocks.kv import _quantised
from blocks.kv.scales import LIMITS
from blocks.kv.write import bad_slot

MAX_NATIVE_HEAD_DIM = 1024
TILE = 1024
"""Elements of query, or of key, that one Triton program turns."""


class _Heads(ctypes.Structure):
    """Heads of all tokens, as ``Heads`` of the C++ code."""

    _fields_ = [
        ("first", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("token_stride", "head_stride", "count")),
        ("norm", ctypes.c_void_p),
    ]


class _Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("num_tokens", "head_dim", "rotary_dim")),
        *((name, ctypes.c_int64) for name in ("max_positions", "num_slots", "block_size")),
        *((name, ctypes.c_int64) for name in ("interleaved", "format")),
        *((name, ctypes.c_float) for name in ("eps", "weight_offset")),
    ]


def native_takes(query: Tensor, cache: Tensor) -> bool:
    """Whether the C++ code computes on these: element types and sizes it knows."""
    same = cache.dtype in (query.dtype, *LIMITS)
    known = query.dtype in (torch.bfloat16, torch.float32)
    return same and known and query.shape[2] <= MAX_NATIVE_HEAD_DIM


def run_native(
    given: tuple[Tensor, Tensor, Tensor],
    where: tuple[Tensor, Tensor, Tensor],
    caches: tuple[Tensor, Tensor],
    norms: tuple[Tensor | None, Tensor | None],
    scales: tuple[Tensor, Tensor] | None,
    inplace: bool,
    *,
    eps: float,
    weight_offset: float,
    interleaved: bool,
) -> Tensor:
    """``rope_write_kv`` in C++, which looks at slots, scales and positions before it writes."""
    query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in given)
    positions, cos_sin, slots = where[0].long().contiguous(), where[1].contiguous(), where[2]
    slots = slots.contiguous()
    out = query if inplace else torch.empty_like(query, memory_format=torch.contiguous_format)
    weights = [None if norm is None else norm.contiguous() for norm in norms]
    described = [_heads(x, w) for x, w in zip((query, key, value), (*weights, None), strict=True)]
    num_blocks, block_size, _, head_dim = caches[0].shape
    quantised = scales is not None
    pages = [
        _quantised.native_cache(cache, None if scales is None else scales[i])
        for i, cache in enumerate(caches)
    ]
    sizes = _Sizes(
        *(slots.shape[0], head_dim, cos_sin.shape[1], cos_sin.shape[0]),
        *(num_blocks * block_size, block_size, interleaved),
        _quantised.native_format(caches[0]) if quantised else -1,
        *(eps, weight_offset),
    )
    bad = _functions()[query.dtype](
        ctypes.byref(described[0]),
        *(out.data_ptr(), *out.stride()[:2]),
        *(ctypes.byref(heads) for heads in described[1:]),
        *(positions.data_ptr(), cos_sin.data_ptr(), slots.data_ptr()),
        *(ctypes.byref(page) for page in pages),
        ctypes.byref(sizes),
    )
    if bad >= 0:
        raise bad_slot(int(slots[bad]), caches[0])
    if bad == -2 and scales is not None:
        raise _quantised.bad_scale(caches, scales, slots)
    if bad <= -3:
        raise outside_table(f"{int(positions[-3 - bad])} at token {-3 - bad}", cos_sin.shape[0])
    return given[0].copy_(out) if inplace and out is not given[0] else out


def _heads(x: Tensor, norm: Tensor | None) -> _Heads:
    return _Heads(
        x.data_ptr(), *x.stride()[:2], x.shape[1], None if norm is None else norm.data_ptr()
    )


@functools.cache
def _functions() -> dict[torch.dtype, Callable[..., int]]:
    library = _native.load(Path(__file__).parent / "_native" / "rope_write.cpp")
    found = {torch.bfloat16: library.rope_write_bf16, torch.float32: library.rope_write_f32}
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    for function in found.values():
        function.restype = size
        function.argtypes = [pointer, pointer, size, size, *[pointer] * 8]
    return found


def run_triton(
    given: tuple[Tensor, Tensor, Tensor],
    where: tuple[Tensor, Tensor, Tensor],
    caches: tuple[Tensor, Tensor],
    norms: tuple[Tensor | None, Tensor | None],
    scales: tuple[Tensor, Tensor] | None,
    inplace: bool,
    *,
    eps: float,
    weight_offset: float,
    interleaved: bool,
) -> Tensor:
    """The same in one launch; slots are masked, positions and scales trusted."""
    from blocks.kv._triton.rope_write import rope_write_kernel

    query, key, value = (x if x.stride(2) == 1 else x.contiguous() for x in given)
    positions, cos_sin, slots = (x.contiguous() for x in where)
    out = query if inplace else torch.empty_like(query, memory_format=torch.contiguous_format)
    num_tokens, num_heads, head_dim = query.shape
    num_blocks, block_size, num_kv_heads, _ = caches[0].shape
    half = cos_sin.shape[1] // 2
    tiles, num_warps = rope_write_tiles(half, head_dim)
    programs = -(-num_heads // tiles["TILE_HEADS"]) + -(-num_kv_heads // tiles["TILE_HEADS"])
    formats: dict[str, bool] = dict.fromkeys(
        ("K_DYNAMIC", "V_DYNAMIC", "IS_INT8", "HARDWARE"), False
    )
    of_scales: list[Any] = [None, 0, 0, 0] * 2
    pages = caches
    if scales is not None:
        of_scales = _quantised.scale_arguments(caches, scales)
        formats = _quantised.format_arguments(caches, scales)
        pages = (caches[0].view(torch.uint8), caches[1].view(torch.uint8))
    if num_tokens > 0:
        launch: Any = rope_write_kernel[(num_tokens, programs)]
        launch(
            *(part for x in (query, key, value, out) for part in (x, *x.stride()[:2])),
            positions,
            cos_sin,
            *(None if norm is None else norm.contiguous() for norm in norms),
            *pages,
            *caches[0].stride()[:2],
            *of_scales,
            slots,
            num_blocks * block_size,
            num_heads,
            num_kv_heads,
            half,
            head_dim,
            eps,
            weight_offset,
            BLOCK_SIZE=block_size,
            INTERLEAVED=interleaved,
            ROUND_FIRST=weight_offset == 0.0,
            **formats,
            **tiles,
            num_warps=num_warps,
        )
    return given[0].copy_(out) if inplace and out is not given[0] else out


def rope_write_tiles(half: int, head_dim: int) -> tuple[dict[str, int], int]:
    """Heads, pairs, unturned and all dimensions of a Triton program's tile, and its warps."""
    tile_dim = 1 << (head_dim - 1).bit_length()
    tile_heads = max(1, min(8, TILE // tile_dim))
    tiles = {
        "TILE_HEADS": tile_heads,
        "TILE_HALF": 1 << (half - 1).bit_length(),
        "TILE_REST": 1 << max(head_dim - 2 * half - 1, 0).bit_length(),
        "TILE_DIM": tile_dim,
    }
    return tiles, max(1, tile_heads * tile_dim // 512)  # sixteen elements a thread


def outside_table(got: str, max_positions: int) -> ValueError:
    """What to raise for positions the table does not have."""
    return fail("positions", f"within [0, {max_positions})", got, "make a longer table")
