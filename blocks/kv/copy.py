"""Whole blocks copied inside the cache, all layers at once: what copy-on-write asks for."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from blocks._checks import expects_tensors, fail
from blocks._impl import choose_impl
from blocks._work import Work
from blocks.kv import reference
from blocks.kv.copies import independent_groups

HAS = ("reference", "torch", "triton")
TILE = 2048
"""Elements one program copies."""


@expects_tensors
def copy_blocks(
    planes: Float[Tensor, "num_planes num_blocks *block"],
    pairs: list[tuple[int, int]],
    *,
    impl: str | None = None,
) -> None:
    """Copy block ``source`` to block ``target`` in every plane, in place.

    The result is that of one copy after the other; copies that do not touch each other's blocks
    run together.

    Args:
        planes: the keys and the values of every layer, one plane each; contiguous.
        pairs: (source, target) block ids.
        impl: None for the fastest on this device.

    Raises:
        ValueError: a block id out of range; nothing is copied.

    Reference: Kwon et al., 2023, PagedAttention, section 5.1 (fused block copy).
    """
    if not planes.is_contiguous():
        raise fail("planes", "a contiguous tensor", f"strides {planes.stride()}")
    num_blocks = planes.shape[1]
    for pair in pairs:
        if not (0 <= pair[0] < num_blocks and 0 <= pair[1] < num_blocks):
            raise fail("block copy", f"block ids from 0 to {num_blocks - 1}", pair)
    chosen = choose_impl(impl, HAS, planes)
    if chosen == "reference":
        reference.copy_blocks(planes, pairs)
        return
    run = _copy_triton if chosen == "triton" else _copy_torch
    for group in independent_groups(pairs):
        run(planes, torch.tensor(group, device=planes.device))


def _copy_torch(planes: Tensor, pairs: Tensor) -> None:
    sources, targets = pairs.unbind(1)
    planes.index_copy_(1, targets, planes.index_select(1, sources))


def _copy_triton(planes: Tensor, pairs: Tensor) -> None:
    from blocks.kv._triton.copy import copy_blocks_kernel

    num_planes, _, *block = planes.shape
    elements = math.prod(block)
    launch: Any = copy_blocks_kernel[(pairs.shape[0], num_planes, -(-elements // TILE))]
    launch(planes, *planes.stride()[:2], pairs, elements, TILE=TILE)


def copy_blocks_work(num_pairs: int, num_planes: int, block_bytes: int) -> Work:
    """Every block is read once and written once in every plane."""
    return Work(flops=0, bytes=2 * num_pairs * num_planes * block_bytes)
