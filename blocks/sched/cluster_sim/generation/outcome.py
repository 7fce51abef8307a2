"""``GenerationOutcome``: what became of every request for text."""

import dataclasses

import numpy as np
import numpy.typing as npt

from blocks.sched.cluster_sim.outcome import NAMES, Bools
from blocks.sched.cluster_sim.problem import FINISHED, PENDING, UNPLACED, Floats, Ints
from blocks.sched.placement.placement import Placement
from blocks.sched.workload.workload import Workload


@dataclasses.dataclass(frozen=True, eq=False)
class GenerationOutcome:
    """The answer to every request of a workload.

    status: as in ``Outcome``.
    answered_s: when it was refused, or its last token came.
    first_token_s: when its first token came; NaN where none did.
    predicted_ttft_s: seconds to the first token as predicted when it was sent or refused; NaN where
        no group was asked.
    group: index of the group that answered or refused; -1 where none was asked.
    busy_s: stage seconds of steps, for each group.
    num_preemptions: times that running sequences gave their blocks back, for each group.

    **Invariants**

    1. Every request has one answer, not before it came, and after its first token.
    """

    workload: Workload
    placement: Placement
    status: npt.NDArray[np.int8]
    answered_s: Floats
    first_token_s: Floats
    predicted_ttft_s: Floats
    group: Ints
    busy_s: Floats
    num_preemptions: npt.NDArray[np.int64]

    @property
    def finished(self) -> Bools:
        """Which requests were served."""
        return self.status == FINISHED

    @property
    def ttft_s(self) -> Floats:
        """Seconds from arrival to the first token; NaN for those that were not served."""
        return np.where(self.finished, self.first_token_s - self.workload.arrival_s, np.nan)

    @property
    def tpot_s(self) -> Floats:
        """Mean seconds for each token after the first; 0 where there is only one, NaN for those
        that were not served."""
        after = np.maximum(self.workload.output_len - 1, 1)
        return np.where(self.finished, (self.answered_s - self.first_token_s) / after, np.nan)

    @property
    def ttft_met(self) -> Bools:
        """Whose first token came in time."""
        return self.ttft_s <= self.workload.slo_s  # false for NaN

    @property
    def tpot_met(self) -> Bools:
        """Whose tokens came fast enough, on average."""
        return self.tpot_s <= self.workload.tpot_s + 1e-12

    @property
    def met(self) -> Bools:
        """Which requests met both limits."""
        return self.ttft_met & self.tpot_met

    @property
    def attainment(self) -> float:
        """Share of all requests that met both limits; 1 of none."""
        return float(self.met.mean()) if self.workload.num_requests else 1.0

    @property
    def goodput(self) -> float:
        """Requests a second that met both limits."""
        return float(self.met.sum() / self.workload.duration_s) if self.workload.duration_s else 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Requests by what became of them; ``late`` ones are among the finished."""
        found = {name: int((self.status == status).sum()) for status, name in NAMES.items()}
        return found | {"late": int((self.finished & ~self.met).sum())}

    @property
    def utilisation(self) -> Floats:
        """Share of the time that the stages of each group were at work, on average."""
        last_s = float(self.answered_s.max()) if self.workload.num_requests else 0.0
        horizon_s = max(self.workload.duration_s, last_s)
        stages = np.array([group.configuration.pp for group in self.placement.groups], np.float64)
        return self.busy_s / (stages * horizon_s) if horizon_s else np.zeros(len(stages))

    def __str__(self) -> str:
        told = ", ".join(f"{count:,} {name}" for name, count in self.counts.items() if count)
        count = self.workload.num_requests
        text = f"attainment {self.attainment:.2%} of {count:,} requests ({told})"
        if not self.finished.any():
            return text
        ttft, tpot = self.ttft_s[self.finished], self.tpot_s[self.finished]
        return (
            f"{text}; TTFT p50 {np.median(ttft):.3f} s, p99 {np.percentile(ttft, 99):.3f}; "
            f"TPOT p50 {np.median(tpot) * 1e3:.1f} ms, p99 {np.percentile(tpot, 99) * 1e3:.1f}"
        )

    def check_invariants(self) -> None:
        """Assert invariant 1."""
        assert not np.any(self.status == PENDING), "a request without an answer"
        assert np.all(self.answered_s >= self.workload.arrival_s)
        done = self.finished
        assert np.all(self.first_token_s[done] <= self.answered_s[done])
        assert np.all(self.first_token_s[done] >= self.workload.arrival_s[done])
        assert np.all((self.group == -1) == (self.status == UNPLACED))
