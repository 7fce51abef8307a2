"""``reshard_steps``: what a resharding sends, as numbers that are quick to evaluate. No torch."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

from blocks.sharding.collective_bytes import Collective, collective_bytes
from blocks.sharding.mesh import Mesh
from blocks.sharding.placement import Placement, Shard
from blocks.sharding.reshard_plan import Step, plan_reshard
from blocks.sharding.spec import ShardingSpec


class QuickStep(NamedTuple):
    """A ``Step`` of a resharding, reduced to what its bytes depend on.

    collective, axis: of the step. num_ranks: along the axis.
    cuts: (dim, over how many ranks the other axes cut it), for the dims they cut.
    padded: dims that the step cuts or joins; their runs travel padded to the longest.

    >>> (step,) = reshard_steps(Mesh.of(tensor=4), (Shard(0),), (Shard(1),))
    >>> step.sent_bytes((8, 8), 4)
    48
    """

    collective: Collective
    axis: str
    num_ranks: int
    cuts: tuple[tuple[int, int], ...]
    padded: tuple[int, ...]

    def sent_bytes(self, shape: Sequence[int], itemsize: int) -> int:
        """What ``Step.bytes`` says: bytes that a rank with the longest parts sends."""
        if self.collective in ("narrow", "mask"):
            return 0
        sizes = self._sizes(shape)
        for dim in self.padded:
            sizes[dim] = -(-sizes[dim] // self.num_ranks) * self.num_ranks
        held = math.prod(sizes) // (self.num_ranks if self.collective == "all_to_all" else 1)
        return collective_bytes(self.collective, held, itemsize, self.num_ranks)

    def copied_bytes(self, shape: Sequence[int], itemsize: int) -> int:
        """What ``narrow`` and ``mask`` read and write, which send nothing."""
        if self.collective not in ("narrow", "mask"):
            return 0
        sizes = self._sizes(shape)
        for dim in self.padded:
            sizes[dim] = -(-sizes[dim] // self.num_ranks)
        return 2 * math.prod(sizes) * itemsize

    def _sizes(self, shape: Sequence[int]) -> list[int]:
        """As the other axes cut it, the longest parts."""
        sizes = list(shape)
        for dim, num_ranks in self.cuts:  # ceil(ceil(a / b) / c) is ceil(a / bc)
            sizes[dim] = -(-sizes[dim] // num_ranks)
        return sizes


@functools.lru_cache(maxsize=1 << 18)
def reshard_steps(
    mesh: Mesh, source: tuple[Placement, ...], target: tuple[Placement, ...]
) -> tuple[QuickStep, ...]:
    """The steps of ``plan_reshard`` along axes of several ranks, remembered."""
    plan = plan_reshard(ShardingSpec(mesh, source), ShardingSpec(mesh, target))
    return tuple(_quick(step) for step in plan if mesh.size(step.axis) > 1)


def _quick(step: Step) -> QuickStep:
    cuts: dict[int, int] = {}
    for axis, size in zip(step.before.mesh.axes, step.before.mesh.sizes, strict=True):
        placement = step.before.placement(axis)
        if axis != step.axis and isinstance(placement, Shard):
            cuts[placement.dim] = cuts.get(placement.dim, 1) * size
    padded = ()
    if step.collective != "all_reduce":
        padded = tuple(p.dim for p in (step.source, step.target) if isinstance(p, Shard))
    num_ranks = step.before.mesh.size(step.axis)
    return QuickStep(step.collective, step.axis, num_ranks, tuple(sorted(cuts.items())), padded)


def sent_bytes(collective: Collective, num_bytes: int, num_ranks: int) -> int | float:
    """Bytes a rank sends for a tensor of ``num_bytes``, whole along the axis; a whole number where
    the parts are.

    >>> sent_bytes("all_reduce", 64, 4), sent_bytes("all_to_all", 64, 4)
    (96, 12)
    """
    parts = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1}
    count = parts.get(collective, 0) * (num_ranks - 1) * num_bytes
    divisor = num_ranks * (num_ranks if collective == "all_to_all" else 1)
    return count / divisor if count % divisor else count // divisor
