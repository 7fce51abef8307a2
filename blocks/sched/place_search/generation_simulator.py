"""``GenerationSimulator``: models that generate, for the search."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from blocks.sched.cluster_sim.components import components
from blocks.sched.cluster_sim.generation import simulate_generation
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Profile
from blocks.sched.workload import Workload


class Generated(NamedTuple):
    """What ``Simulated`` asks for; latency is that of the first token."""

    attainment: float
    mean_latency_s: float
    met_by_model: npt.NDArray[np.int64]
    utilisation: npt.NDArray[np.float64]


class _Part(NamedTuple):
    met_by_model: npt.NDArray[np.int64]
    ttft_s: float
    finished: int
    utilisation: npt.NDArray[np.float64]


class GenerationSimulator:
    """Runs ``simulate_generation`` on each set of groups that share models, each set once.

    Args:
        profiles: with prefill and decode times.
        workload: with lengths.
        options: of ``simulate_generation``.
    """

    def __init__(self, profiles: Mapping[str, Profile], workload: Workload, **options: Any) -> None:
        self.profiles = profiles
        self.workload = workload
        self.options = options
        self._known: dict[tuple[Group, ...], _Part] = {}

    def run(self, placement: Placement) -> Generated:
        """Serve the workload."""
        met = np.zeros(len(self.workload.models), np.int64)
        utilisation = np.zeros(len(placement.groups))
        waited_s, finished = 0.0, 0
        for indices in components(placement.groups):
            groups = tuple(placement.groups[index]._replace(devices=()) for index in indices)
            if not any(group.models for group in groups):
                continue
            if groups not in self._known:
                self._known[groups] = self._part(groups)
            part = self._known[groups]
            met += part.met_by_model
            utilisation[list(indices)] = part.utilisation
            waited_s += part.ttft_s
            finished += part.finished
        total = self.workload.num_requests
        return Generated(
            float(met.sum() / total) if total else 1.0,
            waited_s / finished if finished else float("nan"),
            met,
            utilisation,
        )

    def _part(self, groups: tuple[Group, ...]) -> _Part:
        hosted = {model for group in groups for model in group.models}
        mine = np.array([model in hosted for model in self.workload.models], bool)
        asked = self.workload.select(mine[self.workload.model])
        outcome = simulate_generation(Placement(groups), self.profiles, asked, **self.options)
        met = np.bincount(asked.model[outcome.met], minlength=len(mine))
        ttft_s = outcome.ttft_s[outcome.finished]
        return _Part(met, float(ttft_s.sum()), len(ttft_s), outcome.utilisation)
