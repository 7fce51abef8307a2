"""What the search asks of a simulator. Needs no torch."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from blocks.sched.placement import Placement

Settings = Mapping[str, Any]
"""Keyword arguments of ``ClusterSim``."""


@runtime_checkable
class Simulated(Protocol):
    """What came of one run."""

    @property
    def attainment(self) -> float:
        """Share of all requests that were answered in time."""
        ...

    @property
    def mean_latency_s(self) -> float:
        """Seconds from arrival to answer, over answered requests; NaN where there is none."""
        ...

    @property
    def met_by_model(self) -> Sequence[int] | Any:
        """Requests answered in time, by index of the workload's models."""
        ...

    @property
    def utilisation(self) -> Sequence[float] | Any:
        """Busy share of each group, in the order of the placement."""
        ...


@runtime_checkable
class Simulator(Protocol):
    """One workload, ready to be run on any placement; ``ClusterSim`` meets it by shape.

    A run is a pure function of the groups, in their order; models without a group are turned away.
    """

    def run(self, placement: Placement) -> Simulated:
        """Serve the workload."""
        ...
