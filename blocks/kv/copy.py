"""Whole blocks copied in all layers at once: inside a cache for copy-on-write, or to another."""

from typing import Any

import torch
from jaxtyping import Float32, Num
from torch import Tensor

from blocks._checks import check, check_dtype, check_shape, expects_tensors, fail
from blocks._impl import choose_impl
from blocks._work import Work
from blocks.kv import reference
from blocks.kv.copies import independent_groups

HAS = ("reference", "torch", "triton")
TILE = 2048
"""Words one program copies."""
WORDS = (torch.int32, torch.int16, torch.uint8)
"""What blocks are copied as: the widest that divides them."""


@expects_tensors
def copy_blocks(
    planes: Num[Tensor, "num_planes num_blocks *block"],
    pairs: list[tuple[int, int]],
    *,
    scales: Float32[Tensor, "num_planes num_blocks *scales"] | None = None,
    impl: str | None = None,
) -> None:
    """Copy block ``source`` to block ``target`` in every plane, in place.

    The result is that of one copy after the other; copies that do not touch each other's blocks
    run together.

    Args:
        planes: the keys and the values of every layer, one plane each; contiguous.
        pairs: (source, target) block ids.
        scales: those that belong to blocks, copied along in the same launch.
        impl: None for the fastest on this device.

    Raises:
        ValueError: a block id out of range; nothing is copied.

    Reference: Kwon et al., 2023, PagedAttention, section 5.1 (fused block copy).
    """
    _check_planes("planes", planes, scales)
    _check_pairs(pairs, planes.shape[1], planes.shape[1])
    chosen = choose_impl(impl, HAS, planes)
    if chosen == "reference":
        reference.copy_blocks(planes, pairs, scales=scales)
        return
    run = _copy_triton if chosen == "triton" else _copy_torch
    for group in independent_groups(pairs):
        run((planes, planes), (scales, scales), group)


@expects_tensors
def swap_blocks(
    source: Num[Tensor, "num_planes num_source_blocks *block"],
    target: Num[Tensor, "num_planes num_target_blocks *block"],
    pairs: list[tuple[int, int]],
    *,
    source_scales: Float32[Tensor, "num_planes num_source_blocks *scales"] | None = None,
    target_scales: Float32[Tensor, "num_planes num_target_blocks *scales"] | None = None,
    impl: str | None = None,
) -> None:
    """Copy blocks of one cache into blocks of another, which may be in pinned host memory.

    On an accelerator it is one launch on the current stream, and nobody waits: the blocks are
    there when the stream is. The kernel reads and writes pinned memory over the link itself.

    Args:
        source: read; contiguous.
        target: written in place; contiguous, other memory than ``source``.
        pairs: (source, target) block ids; no target twice.
        source_scales, target_scales: scales that belong to blocks, both or neither.
        impl: None for the fastest where the caches are.

    Raises:
        ValueError, TypeError: a block id out of range, a target named twice, caches that differ in
            anything but their number of blocks, or host memory that is not pinned; nothing is
            copied.
    """
    _check_planes("source", source, source_scales)
    _check_planes("target", target, target_scales)
    check_dtype("target", target, (source.dtype,), "as source")
    check_shape("target", target, (source.shape[0], "num_blocks", *source.shape[2:]), "as source")
    both = (source_scales is None) == (target_scales is None)
    check(both, "scales", "both or neither", "one of source_scales and target_scales")
    if source_scales is not None and target_scales is not None:
        wanted = (source.shape[0], target.shape[1], *source_scales.shape[2:])
        check_shape("target_scales", target_scales, wanted, "as source_scales")
    _check_pairs(pairs, source.shape[1], target.shape[1])
    check(source is not target, "target", "other memory than source", "the same tensor")
    targets = [pair[1] for pair in pairs]
    if len(set(targets)) < len(targets):
        raise fail("pairs", "every target block once", targets, "drop all but the last")
    on_host = [x.device.type == "cpu" for x in (source, target)]
    mixed = on_host[0] != on_host[1]
    chosen = choose_impl(impl, HAS, target if on_host[0] else source)
    if chosen == "triton" and mixed:
        for name, x in (("source", source), ("target", target)):
            if x.device.type == "cpu" and not x.is_pinned():
                raise fail(name, "pinned host memory", "pageable", "make it with pin_memory()")
    if chosen == "reference":
        reference.swap_blocks(
            source, target, pairs, source_scales=source_scales, target_scales=target_scales
        )
    elif pairs:
        run = _copy_triton if chosen == "triton" else _copy_torch
        run((source, target), (source_scales, target_scales), pairs)


def _copy_torch(
    planes: tuple[Tensor, Tensor],
    scales: tuple[Tensor | None, Tensor | None],
    pairs: list[tuple[int, int]],
) -> None:
    sources, targets = torch.tensor(pairs).unbind(1)
    for source, target in (planes, scales):
        if source is not None and target is not None:
            blocks = _words(source).index_select(1, sources.to(source.device))
            found = blocks.to(target.device)
            _words(target).index_copy_(1, targets.to(target.device), found)


def _copy_triton(
    planes: tuple[Tensor, Tensor],
    scales: tuple[Tensor | None, Tensor | None],
    pairs: list[tuple[int, int]],
) -> None:
    from blocks.kv._triton.copy import copy_blocks_kernel

    source, target = (_words(x) for x in planes)
    device = source.device if source.device.type != "cpu" else target.device
    pairs_there = torch.tensor(pairs, pin_memory=device.type == "cuda")
    num_words, tile = source.shape[2], TILE
    num_tiles = -(-num_words // tile)
    of_scales: list[Any] = [None, 0, 0, None, 0, 0, 0]
    num_scale_tiles = 0
    if scales[0] is not None and scales[1] is not None:
        first, second = (_words(x) for x in scales if x is not None)
        of_scales = [first, *first.stride()[:2], second, *second.stride()[:2], first.shape[2]]
        num_scale_tiles = -(-first.shape[2] // tile)
    grid = (len(pairs), source.shape[0], num_tiles + num_scale_tiles)
    launch: Any = copy_blocks_kernel[grid]
    launch(
        source,
        *source.stride()[:2],
        target,
        *target.stride()[:2],
        num_words,
        *of_scales,
        pairs_there.to(device, non_blocking=True),
        num_tiles,
        TILE=tile,
    )


def _words(blocks: Tensor) -> Tensor:
    """``[num_planes, num_blocks, words of a block]``: the same memory in wide plain numbers."""
    rows = blocks.flatten(2) if blocks.dim() > 2 else blocks.unsqueeze(2)
    itemsize = rows.element_size()
    sizes = (rows.shape[2] * itemsize, rows.storage_offset() * itemsize)
    word = next(w for w in WORDS if not any(size % w.itemsize for size in sizes))
    return rows.view(torch.uint8).view(word)


def _check_planes(name: str, planes: Tensor, scales: Tensor | None) -> None:
    check(planes.dim() >= 2, f"{name} shape", "[num_planes, num_blocks, ...]", list(planes.shape))
    for what, x in ((name, planes), (f"{name} scales", scales)):
        if x is not None and not x.is_contiguous():
            raise fail(what, "a contiguous tensor", f"strides {x.stride()}")
    if scales is not None:
        check_dtype(f"{name} scales", scales, (torch.float32,), "scales are float32")
        same = scales.shape[:2] == planes.shape[:2] and scales.device == planes.device
        wanted = f"[{planes.shape[0]}, {planes.shape[1]}, ...] on {planes.device}"
        check(same, f"{name} scales", wanted, f"{list(scales.shape)} on {scales.device}")


def _check_pairs(pairs: list[tuple[int, int]], num_sources: int, num_targets: int) -> None:
    if not isinstance(pairs, list | tuple):
        raise TypeError(f"pairs: expected a list of (source, target), got {type(pairs).__name__}")
    for pair in pairs:
        whole = isinstance(pair, list | tuple) and all(hasattr(n, "__index__") for n in pair)
        if not whole or len(pair) != 2:
            raise fail("pairs", "(source, target) block ids", pair)
        if not (0 <= pair[0] < num_sources and 0 <= pair[1] < num_targets):
            wanted = f"block ids from 0 to {num_sources - 1}"
            if num_targets != num_sources:
                wanted += f" and from 0 to {num_targets - 1}"
            raise fail("block copy", wanted, pair)


def copy_blocks_work(num_pairs: int, num_planes: int, block_bytes: int) -> Work:
    """Every block is read once and written once in every plane."""
    return Work(flops=0, bytes=2 * num_pairs * num_planes * block_bytes)


def swap_blocks_work(num_pairs: int, num_planes: int, block_bytes: int) -> Work:
    """As `copy_blocks_work`; between device and host the bytes cross the link once."""
    return copy_blocks_work(num_pairs, num_planes, block_bytes)
