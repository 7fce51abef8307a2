"""``OpCost``: what the intra-op planner asks of a cost model."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from blocks.sharding.collective_bytes import Collective
from blocks.sharding.op_rule import OpRule
from blocks.sharding.placement import Placement


@runtime_checkable
class OpCost(Protocol):
    """Seconds on one logical mesh; ``MeshCost`` is one, ``AlphaBeta`` another."""

    def collective_s(self, collective: Collective, num_bytes: int, axis: str) -> float:
        """Of a collective for a tensor of ``num_bytes``, whole along the mesh axis."""
        ...

    def reshard_s(
        self,
        shape: Sequence[int],
        itemsize: int,
        source: Sequence[Placement],
        target: Sequence[Placement],
    ) -> float:
        """Of taking a tensor of ``shape`` from one sharding to another."""
        ...

    def compute_s(
        self, rule: OpRule, local_sizes: Sequence[int], num_bytes: int, dtype: str
    ) -> float:
        """Of one rank's part of an operation.

        local_sizes: how long every factor is there.
        num_bytes: of what it reads and writes.
        dtype: of its first output.

        Infinite where it may not be done this way.
        """
        ...
