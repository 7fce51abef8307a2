"""A cost model for tests: every byte sent takes time, and arithmetic may be done only once."""

import dataclasses
import math
from collections.abc import Sequence

from blocks.sharding import (
    Mesh,
    OpRule,
    Placement,
    ShardingSpec,
    collective_bytes,
    plan_reshard,
)
from blocks.sharding.collective_bytes import Collective

TIES = {"all_gather": 0.1, "all_reduce": 0.01, "reduce_scatter": 0.001, "all_to_all": 0.001}
"""What Alpa adds to each."""


@dataclasses.dataclass(frozen=True)
class TimedBytes:
    """``alpha + beta * bytes`` and a hair, for every axis; an operation with FLOPs that some rank
    does again may not be done so."""

    mesh: Mesh
    alpha: tuple[float, ...]
    beta: tuple[float, ...]

    def collective_s(self, collective: Collective, num_bytes: int, axis: str) -> float:
        num_ranks = self.mesh.size(axis)
        return self._time(collective, collective_bytes(collective, num_bytes, 1, num_ranks), axis)

    def reshard_s(
        self,
        shape: Sequence[int],
        itemsize: int,
        source: Sequence[Placement],
        target: Sequence[Placement],
    ) -> float:
        specs = (ShardingSpec(self.mesh, tuple(placements)) for placements in (source, target))
        steps = plan_reshard(*specs)
        return sum(self._time(s.collective, s.bytes(shape, itemsize), s.axis) for s in steps)

    def compute_s(
        self, rule: OpRule, local_sizes: Sequence[int], num_bytes: int, dtype: str
    ) -> float:
        return 0.0 if self._once(rule, local_sizes) else math.inf

    def _once(self, rule: OpRule, sizes: Sequence[int]) -> bool:
        return rule.flops_of(sizes) * self.mesh.num_ranks <= rule.flops()

    def _time(self, collective: Collective, sent: int, axis: str) -> float:
        if collective in ("narrow", "mask") or self.mesh.size(axis) == 1:
            return 0.0
        at = self.mesh.index(axis)
        return self.alpha[at] + self.beta[at] * sent + TIES[collective]
