"""``Box``: a part of a tensor, a run of every dim; who holds which. Needs no torch."""

import math
from collections.abc import Sequence

from blocks.sharding.placement import Partial, Run, run_of
from blocks.sharding.spec import ShardingSpec

Box = tuple[Run, ...]
"""A half-open range of every dim of the whole tensor."""


def num_elements(box: Box) -> int:
    """How many elements are in it.

    >>> num_elements((Run(0, 2), Run(1, 4)))
    6
    """
    return math.prod(run.size for run in box)


def overlap(one: Box, other: Box) -> Box | None:
    """What two boxes share; None where that is nothing.

    >>> overlap((Run(0, 4),), (Run(2, 6),))
    (Run(start=2, stop=4),)
    """
    found = tuple(
        Run(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )
    return found if all(run.start < run.stop for run in found) else None


def offset_in(box: Box, outer: Box) -> Box:
    """The box as ranges of a tensor that holds ``outer`` alone.

    >>> offset_in((Run(5, 6),), (Run(4, 8),))
    (Run(start=1, stop=2),)
    """
    pairs = zip(box, outer, strict=True)
    return tuple(Run(run.start - out.start, run.stop - out.start) for run, out in pairs)


def cut_box(box: Box, dim: int, num_parts: int) -> tuple[Box, ...]:
    """The box cut along a dim as ``Shard`` cuts; empty parts are left out.

    >>> cut_box((Run(0, 3),), 0, 2)
    ((Run(start=0, stop=2),), (Run(start=2, stop=3),))
    """
    parts = [run_of(box[dim].size, num_parts, at) for at in range(num_parts)]
    start = box[dim].start
    return tuple(
        (*box[:dim], Run(start + part.start, start + part.stop), *box[dim + 1 :])
        for part in parts
        if part.size
    )


def holders(spec: ShardingSpec, shape: Sequence[int]) -> dict[Box, tuple[int, ...]]:
    """The ranks that hold each part that some rank holds; parts without elements are left out.

    Of the ranks that hold addends only the first has any: the others are to hold zeros.
    """
    found: dict[Box, list[int]] = {}
    for rank in spec.mesh.ranks:
        if not is_zero(spec, rank):
            box = spec.runs(shape, rank)
            if num_elements(box):
                found.setdefault(box, []).append(rank)
    return {box: tuple(ranks) for box, ranks in found.items()}


def is_zero(spec: ShardingSpec, rank: int) -> bool:
    """Whether a rank holds zeros of a sum that the first rank along the axis holds."""
    pairs = zip(spec.placements, spec.mesh.coordinates(rank), strict=True)
    return any(isinstance(placement, Partial) and at > 0 for placement, at in pairs)
