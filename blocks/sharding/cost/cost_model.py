"""``CostModel``: what planners ask of a model of time. Needs no torch."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from blocks.sharding.collective_bytes import Collective
from blocks.sharding.op_rule import OpRule
from blocks.sharding.placement import Placement


@runtime_checkable
class CostModel(Protocol):
    """Seconds of what the ranks of one mesh do together.

    Met by ``MeshCost`` (a cluster) and ``AlphaBeta`` (closed forms).
    """

    def collective_s(self, collective: Collective, num_bytes: int, axis: str) -> float:
        """Seconds of one collective along an axis.

        Args:
            num_bytes: of the tensor as it is whole along this axis: what a rank has before an
                all-reduce or reduce-scatter, after an all-gather, and the runs of all ranks
                together in an all-to-all.
        """
        ...

    def reshard_s(
        self,
        shape: Sequence[int],
        itemsize: int,
        source: Sequence[Placement],
        target: Sequence[Placement],
    ) -> float:
        """Seconds of the steps of ``plan_reshard`` for a whole tensor of ``shape``."""
        ...

    def compute_s(
        self, rule: OpRule, local_sizes: Sequence[int], num_bytes: int, dtype: str
    ) -> float:
        """Seconds of an operation whose factors are as long as ``local_sizes`` on a rank.

        Args:
            num_bytes: that the rank reads and writes.
            dtype: it computes in, as torch names it.

        Infinite where it may not be done this way.
        """
        ...
