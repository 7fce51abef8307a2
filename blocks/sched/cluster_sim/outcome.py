"""``Outcome``: what became of every request, and what that says about a placement."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blocks.sched.cluster_sim.problem import (
    FAILED,
    FINISHED,
    PENDING,
    REJECTED,
    UNPLACED,
    Floats,
    Ints,
)
from blocks.sched.placement.placement import Placement
from blocks.sched.workload.workload import Workload

Bools = npt.NDArray[np.bool_]
NAMES = {FINISHED: "finished", REJECTED: "rejected", UNPLACED: "unplaced", FAILED: "failed"}


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """The answer to every request of a workload.

    status: ``FINISHED``, ``REJECTED`` (its deadline could not be met), ``UNPLACED`` (no group was
        up that hosts its model) or ``FAILED`` (its group stopped).
    answered_s: when it was told so, on the clock of the workload.
    group: index of the group that answered or refused; -1 where none was asked.
    busy_s: stage seconds of finished work, for each group.

    **Invariants**

    1. Every request has one answer, not before it came.
    2. A request is answered by a group that hosts its model.
    3. With admission and no clock that jumped, stage noise or group that stopped, what is finished
       meets its deadline.
    """

    workload: Workload
    placement: Placement
    status: npt.NDArray[np.int8]
    answered_s: Floats
    group: Ints
    busy_s: Floats

    @property
    def finished(self) -> Bools:
        """Which requests were served."""
        return self.status == FINISHED

    @property
    def met(self) -> Bools:
        """Which requests were served within their time limit."""
        return self.finished & (self.answered_s <= self.workload.deadline_s)

    @property
    def attainment(self) -> float:
        """SLO attainment: the share of all requests that were served in time; 1 of none."""
        return float(self.met.mean()) if self.workload.num_requests else 1.0

    @property
    def goodput(self) -> float:
        """Requests a second that were served in time."""
        return float(self.met.sum() / self.workload.duration_s) if self.workload.duration_s else 0.0

    @property
    def latencies_s(self) -> Floats:
        """From arrival to answer, of the requests that were served."""
        return (self.answered_s - self.workload.arrival_s)[self.finished]

    @property
    def mean_latency_s(self) -> float:
        """Mean of ``latencies_s``; NaN where nothing was served."""
        latencies_s = self.latencies_s
        return float(latencies_s.mean()) if len(latencies_s) else float("nan")

    def percentiles_s(self, percents: Sequence[float | int] = (50, 90, 99)) -> tuple[float, ...]:
        """Percentiles of ``latencies_s``; NaN where nothing was served."""
        latencies_s = self.latencies_s
        if not len(latencies_s):
            return (float("nan"),) * len(percents)
        return tuple(float(value) for value in np.percentile(latencies_s, list(percents)))

    @property
    def counts(self) -> dict[str, int]:
        """Requests by what became of them; ``late`` ones are among the finished."""
        found = {name: int((self.status == status).sum()) for status, name in NAMES.items()}
        return found | {"late": int((self.finished & ~self.met).sum())}

    @property
    def met_by_model(self) -> npt.NDArray[np.int64]:
        """Requests served in time, for each model of the workload."""
        model = self.workload.model[self.met]
        return np.bincount(model, minlength=len(self.workload.models))

    @property
    def utilisation(self) -> Floats:
        """Share of the time that the stages of each group were at work, on average, up to the end
        of the workload or the last answer."""
        last_s = float(self.answered_s.max()) if self.workload.num_requests else 0.0
        horizon_s = max(self.workload.duration_s, last_s)
        stages = np.array([group.configuration.pp for group in self.placement.groups], np.float64)
        return self.busy_s / (stages * horizon_s) if horizon_s else np.zeros(len(stages))

    def __str__(self) -> str:
        p50, p99 = self.percentiles_s((50, 99))
        told = ", ".join(f"{count:,} {name}" for name, count in self.counts.items() if count)
        return (
            f"attainment {self.attainment:.2%} of {self.workload.num_requests:,} requests "
            f"({told}); latency {self.mean_latency_s:.3f} s on average, p50 {p50:.3f}, "
            f"p99 {p99:.3f}"
        )

    def check_invariants(self) -> None:
        """Assert invariants 1 and 2."""
        assert not np.any(self.status == PENDING), "a request without an answer"  # 1
        assert np.all(self.answered_s >= self.workload.arrival_s)  # 1
        known = {name: index for index, name in enumerate(self.workload.models)}
        hosts = np.zeros((len(self.workload.models), len(self.placement.groups) + 1), bool)
        for index, group in enumerate(self.placement.groups):
            hosts[[known[name] for name in group.models if name in known], index] = True
        hosts[:, -1] = True  # nobody was asked
        assert np.all(hosts[self.workload.model, self.group])  # 2
        assert np.all((self.group == -1) == (self.status == UNPLACED))  # 2
