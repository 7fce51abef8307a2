"""``plan_reshard``: the collectives that take a tensor from one sharding to another. No torch."""

import dataclasses
import math
from collections.abc import Sequence

from blocks._checks import check
from blocks.sharding.collective_bytes import Collective, collective_bytes
from blocks.sharding.placement import Partial, Placement, Replicate, Shard
from blocks.sharding.spec import ShardingSpec


@dataclasses.dataclass(frozen=True, repr=False)
class Step:
    """One mesh axis changes what it does to the tensor; the others stay.

    before, after: the sharding around the step.
    axis: which changes.

    >>> from blocks.sharding.mesh import Mesh
    >>> whole = ShardingSpec.replicated(Mesh.of(tensor=2))
    >>> Step(whole, whole.replace("tensor", Shard(0)), "tensor")
    Step(tensor: R -> S(0), narrow)
    """

    before: ShardingSpec
    after: ShardingSpec
    axis: str

    def __repr__(self) -> str:
        return f"Step({self.axis}: {self.source} -> {self.target}, {self.collective})"

    @property
    def source(self) -> Placement:
        return self.before.placement(self.axis)

    @property
    def target(self) -> Placement:
        return self.after.placement(self.axis)

    @property
    def collective(self) -> Collective:
        """``narrow`` and ``mask`` move nothing between ranks."""
        to_shard = isinstance(self.target, Shard)
        if isinstance(self.source, Replicate):
            return "narrow" if to_shard else "mask"
        if isinstance(self.source, Partial):
            return "reduce_scatter" if to_shard else "all_reduce"
        return "all_to_all" if to_shard else "all_gather"

    def bytes(self, shape: Sequence[int], itemsize: int) -> int:
        """Bytes that a rank with the longest parts sends, for a whole tensor of ``shape``."""
        num_ranks = self.before.mesh.size(self.axis)
        spec = self.before.replace(self.axis, Replicate())
        sizes = list(spec.local_shape(shape, self.before.mesh.ranks[0]))  # the longest parts
        if self.collective == "all_reduce":
            return collective_bytes("all_reduce", math.prod(sizes), itemsize, num_ranks)
        for placement in (self.source, self.target):
            if isinstance(placement, Shard):  # padded
                sizes[placement.dim] = -(-sizes[placement.dim] // num_ranks) * num_ranks
        held = math.prod(sizes) // (num_ranks if self.collective == "all_to_all" else 1)
        return collective_bytes(self.collective, held, itemsize, num_ranks)


def plan_reshard(source: ShardingSpec, target: ShardingSpec) -> tuple[Step, ...]:
    """The steps that take a tensor from ``source`` to ``target``, one mesh axis each.

    Where several axes shard one dim, only the innermost of them can let go of it, and an axis can
    only take hold inside of those that have it; an axis in the way gathers first and shards again
    after. Without such nesting every axis that differs changes once.

    Args:
        source, target: on the same mesh. A sum is only ever left for the last: no step makes
            ``Partial`` out of ``Shard``.

    Raises:
        ValueError: different meshes.

    >>> from blocks.sharding.mesh import Mesh
    >>> a = ShardingSpec.of(Mesh.of(data=2, tensor=2), data=Shard(0), tensor=Shard(0))
    >>> plan_reshard(a, ShardingSpec.of(a.mesh, tensor=Shard(0)))[:2]
    (Step(tensor: S(0) -> R, all_gather), Step(data: S(0) -> R, all_gather))
    """
    check(source.mesh == target.mesh, "meshes", source.mesh, target.mesh, "one mesh for both")
    steps: list[Step] = []
    now = source
    while now != target:
        axis, placement = _next_change(now, target)
        after = now.replace(axis, placement)
        steps.append(Step(now, after, axis))
        now = after
    return tuple(steps)


def _next_change(now: ShardingSpec, target: ShardingSpec) -> tuple[str, Placement]:
    wrong = [axis for axis in now.mesh.axes if now.placement(axis) != target.placement(axis)]
    for axis in reversed(wrong):  # at once, where nothing stands in the way
        goal = target.placement(axis)
        if _may_let_go(now, axis) and _may_take(now, axis, goal) and _in_turn(now, axis, target):
            return axis, goal
    for axis in reversed(wrong):
        if isinstance(now.placement(axis), Shard) and _may_let_go(now, axis):
            return axis, Replicate()
    for axis in reversed(now.mesh.axes):  # right already, and in the way of one that is not
        if isinstance(now.placement(axis), Shard) and _may_let_go(now, axis):
            dim = now.placement(axis)
            if any(dim in (now.placement(other), target.placement(other)) for other in wrong):
                return axis, Replicate()
    raise AssertionError(f"no way from {now} to {target}")


def _may_let_go(now: ShardingSpec, axis: str) -> bool:
    """Whether no axis inside of this one cuts the same dim finer."""
    placement = now.placement(axis)
    inner = now.placements[now.mesh.index(axis) + 1 :]
    return not isinstance(placement, Shard) or placement not in inner


def _may_take(now: ShardingSpec, axis: str, goal: Placement) -> bool:
    """Whether one collective leads to ``goal``."""
    inner = now.placements[now.mesh.index(axis) + 1 :]
    if isinstance(goal, Shard):
        return goal not in inner
    return not (isinstance(goal, Partial) and isinstance(now.placement(axis), Shard))


def _in_turn(now: ShardingSpec, axis: str, target: ShardingSpec) -> bool:
    """Whether the axes outside of this one have the dim it wants, or have let go of it, for good.

    Else it would have to let go again for them.
    """
    index, goal = now.mesh.index(axis), target.placement(axis)
    outer = zip(now.placements[:index], target.placements[:index], strict=True)
    return not isinstance(goal, Shard) or all((a == goal) == (b == goal) for a, b in outer)
