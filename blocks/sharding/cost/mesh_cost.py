"""``MeshCost``: seconds on a mesh of a cluster. Needs no torch."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import get_args

from blocks._checks import check, fail
from blocks.sharding.cluster.cluster import Cluster
from blocks.sharding.cluster.device_kind import DeviceKind
from blocks.sharding.cluster.link import Clock
from blocks.sharding.collective_bytes import Collective
from blocks.sharding.cost.axis_cost import AxisCost
from blocks.sharding.cost.step_bytes import QuickStep, reshard_steps, sent_bytes
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_rule import OpRule
from blocks.sharding.placement import Placement, Shard


@dataclasses.dataclass(frozen=True)
class MeshCost:
    """What the ranks of a mesh take for collectives and operations, all doing the same at once.

    A rank that is slower holds up the others, so the slowest device and the slowest group count.
    Ranks that share processor cores take turns on them.

    cluster: what the ranks of the mesh are devices of.
    mesh: the ranks.
    clock: ``elapsed`` for the seconds that pass; ``cpu`` for those that processor cores work,
        summed over the ranks of the mesh: the machine's view, which noise leaves alone.
    busy: ranks at work on a node at the same time, where other meshes share its cores too; default
        those of this mesh.

    >>> from blocks.sharding.cluster import bundled_cluster
    >>> cost = MeshCost(bundled_cluster("8xA100", num_nodes=2), Mesh.of(data=2, tensor=8))
    >>> [round(cost.collective_s("all_reduce", 2**30, axis) * 1e3, 1) for axis in cost.mesh.axes]
    [61.4, 9.0]
    """

    cluster: Cluster
    mesh: Mesh
    clock: Clock = "elapsed"
    busy: int | None = None

    def __post_init__(self) -> None:
        known = get_args(Clock)
        check(self.clock in known, "clock", f"one of {known}", repr(self.clock))
        last, count = max(self.mesh.ranks), self.cluster.num_devices
        hint = "a larger cluster: resized(num_nodes=...)"
        check(last < count, "ranks of the mesh", f"devices below {count}", last, hint)
        if self.clock == "cpu" and self._cores is None:
            raise fail("clock", "elapsed: no node of the mesh says how many cores it has", "cpu")

    def collective_s(self, collective: Collective, num_bytes: int, axis: str) -> float:
        """Seconds of one collective along an axis.

        Args:
            num_bytes: of the tensor as it is whole along this axis: what a rank has before an
                all-reduce or reduce-scatter, after an all-gather, and the runs of all ranks
                together in an all-to-all.

        Raises:
            ValueError: under the clock ``cpu``, a collective whose link has no such table.
        """
        known = get_args(Collective)
        check(collective in known, "collective", f"one of {known}", repr(collective))
        return self.sent_s(
            collective, sent_bytes(collective, num_bytes, self.mesh.size(axis)), axis
        )

    def sent_s(self, collective: Collective, sent: int | float, axis: str) -> float:
        """The same, from the bytes that a rank sends (``Step.bytes``, ``collective_bytes``)."""
        if collective == "narrow" or collective == "mask" or self.mesh.size(axis) == 1:
            return 0.0
        return self._axes[axis].seconds(collective, sent, self.clock)

    def reshard_s(
        self,
        shape: Sequence[int],
        itemsize: int,
        source: Sequence[Placement],
        target: Sequence[Placement],
    ) -> float:
        """Seconds of the steps of ``plan_reshard`` for a whole tensor of ``shape``.

        Taking a run of what a rank holds sends nothing; it is an operation that copies.

        Raises:
            ValueError: placements that cut a dim the shape does not have.
        """
        key = tuple(source), tuple(target)
        if key not in self._ways:
            cut = [one.dim for one in (*source, *target) if isinstance(one, Shard)]
            self._ways[key] = reshard_steps(self.mesh, *key), max(cut, default=-1)
        steps, last = self._ways[key]
        check(last < len(shape), "sharded dim", f"below {len(shape)}", last)
        taken = self._taken.setdefault((tuple(shape), itemsize), {})
        total = 0.0
        for step in steps:
            if step not in taken:
                taken[step] = self.step_s(step, shape, itemsize)
            total += taken[step]
        return total

    def step_s(self, step: QuickStep, shape: Sequence[int], itemsize: int) -> float:
        """Seconds of one step of ``reshard_steps``."""
        if step.collective == "narrow" or step.collective == "mask":
            return self.work_s(0, step.copied_bytes(shape, itemsize), "")
        return self.sent_s(step.collective, step.sent_bytes(shape, itemsize), step.axis)

    def compute_s(
        self, rule: OpRule, local_sizes: Sequence[int], num_bytes: int, dtype: str
    ) -> float:
        """Seconds of an operation on the ranks of the mesh, each with as much to do.

        Args:
            local_sizes: of the factors, on one rank.
            num_bytes: that the rank reads and writes.
            dtype: it computes in; has to be known only where there is arithmetic.

        Raises:
            ValueError: a dtype that a kind of the mesh knows nothing of.
        """
        product = rule.product_of(local_sizes) if self._tiled else None
        if product is None:
            return self.work_s(rule.flops_of(local_sizes), num_bytes, dtype)
        return self._together(lambda kind: kind.product_s(product, num_bytes, dtype))

    def work_s(self, flops: int, num_bytes: int, dtype: str) -> float:
        """``compute_s`` from FLOPs and bytes of one rank."""
        return self._together(lambda kind: kind.op_s(flops, num_bytes, dtype))

    def _together(self, seconds: Callable[[DeviceKind], float]) -> float:
        """Of what every rank does, from what its kind of device takes for it."""
        if self.clock == "cpu":
            return sum(count * seconds(kind) for count, kind in self._kinds)
        return max(seconds(kind) for _, kind in self._kinds) * self.turns

    @property
    def memory_bytes(self) -> int:
        """What a plan may use on every device of the mesh: that of the smallest."""
        return min(kind.memory_bytes for _, kind in self._kinds)

    @functools.cached_property
    def _ways(self) -> dict[tuple, tuple[tuple[QuickStep, ...], int]]:
        """Between placements met before the steps, and the last dim that they cut."""
        return {}

    @functools.cached_property
    def _taken(self) -> dict[tuple[tuple[int, ...], int], dict[QuickStep, float]]:
        """By shape and size of an element the seconds of steps met before."""
        return {}

    @functools.cached_property
    def turns(self) -> float:
        """How many ranks take turns on a core, on the most crowded node of the mesh; at least 1."""
        return crowding(self.cluster, self.mesh.ranks, self.busy)

    @functools.cached_property
    def _cores(self) -> int | None:
        found = {self.cluster.nodes[self.cluster.node_of(rank)].cores for rank in self.mesh.ranks}
        return None if None in found else min(cores for cores in found if cores is not None)

    @functools.cached_property
    def _kinds(self) -> tuple[tuple[int, DeviceKind], ...]:
        """The kinds of the mesh's devices, and of how many."""
        names = [self.cluster.nodes[self.cluster.node_of(rank)].kind for rank in self.mesh.ranks]
        return tuple((names.count(name), self.cluster.kind(name)) for name in sorted(set(names)))

    @functools.cached_property
    def _tiled(self) -> bool:
        """Whether any device computes products in tiles that are known."""
        return any(kind.tiles for _, kind in self._kinds)

    @functools.cached_property
    def _axes(self) -> dict[str, AxisCost]:
        axes = (
            axis for axis, size in zip(self.mesh.axes, self.mesh.sizes, strict=True) if size > 1
        )
        return {axis: AxisCost.of(self.cluster, self.mesh, axis, self.turns) for axis in axes}


def crowding(cluster: Cluster, ranks: Sequence[int], busy: int | None = None) -> float:
    """Ranks at work on a core of their node, where they share cores; at least 1.

    >>> from blocks.sharding.cluster import bundled_cluster
    >>> crowding(bundled_cluster("2xCPU", num_devices=8), range(6))
    3.0
    """
    worst = 1.0
    for at, node in enumerate(cluster.nodes):
        own = sum(rank in cluster.devices_of(at) for rank in ranks)
        if node.cores is not None and own:
            worst = max(worst, (own if busy is None else max(own, busy)) / node.cores)
    return worst
