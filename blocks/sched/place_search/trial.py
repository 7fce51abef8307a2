"""``Trial`` and ``Evaluator``: placements that were simulated, and how good they are."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from blocks.sched.place_search.memory import Memory
from blocks.sched.place_search.simulator import Simulator
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration
from blocks.sched.workload import Workload

LATENCY_WEIGHT = 1e-4
REPLICA_WEIGHT = 1e-6


class Score(NamedTuple):
    """Placements compare by it.

    attainment: share of requests answered in time; it alone decides unless it is equal.
    tie: ``replicas / 1e6 - mean latency in seconds / 1e4``: one more replica is worth 10 ms.
    """

    attainment: float
    tie: float = 0.0


class Trial(NamedTuple):
    """One placement and what its simulation gave.

    placement: in canonical order.
    unserved: by model, requests that were not answered in time.
    utilisation: by group of the placement.
    """

    placement: Placement
    score: Score
    unserved: Mapping[str, int]
    utilisation: tuple[float, ...]


def canonical(groups: Iterable[tuple[Configuration, Iterable[str]]]) -> Placement:
    """The placement of these groups that stands for all that differ in the order of groups or
    models, or in which devices are whose: large groups first, devices dealt from 0.

    >>> print(canonical([(Configuration(1, 1), "ba"), (Configuration(1, 2), "c")]))
    0: devices 0,1, 1 x 2: c
    1: devices 2, 1 x 1: a, b
    """
    ordered = sorted(
        (-configuration.num_devices, configuration, tuple(sorted(models)))
        for configuration, models in groups
    )
    made, first = [], 0
    for _, configuration, models in ordered:
        stop = first + configuration.num_devices
        made.append(Group(tuple(range(first, stop)), configuration, models))
        first = stop
    return Placement(tuple(made))


def contents(placement: Placement) -> list[tuple[Configuration, tuple[str, ...]]]:
    """Configuration and models of every group, to change and give to ``canonical``."""
    return [(group.configuration, group.models) for group in placement.groups]


class Evaluator:
    """Simulates placements in canonical order, each once.

    simulated: runs of the simulator so far.
    requests: by model, in the whole workload.
    """

    def __init__(self, simulator: Simulator, workload: Workload, memory: Memory) -> None:
        self.simulator = simulator
        self.models = workload.models
        self.memory = memory
        self.simulated = 0
        self._known: dict[Placement, Trial] = {}
        counts = workload.requests_by_model().tolist()
        self.requests: dict[str, int] = dict(zip(self.models, counts, strict=True))

    def __call__(self, groups: Iterable[tuple[Configuration, Iterable[str]]]) -> Trial:
        """The trial of these groups."""
        placement = canonical(groups)
        found = self._known.get(placement)
        if found is None:
            found = self._known[placement] = self._run(placement)
        return found

    def _run(self, placement: Placement) -> Trial:
        self.simulated += 1
        outcome = self.simulator.run(self.memory.with_rooms(placement))
        served = dict(zip(self.models, map(int, outcome.met_by_model), strict=True))
        unserved = {model: self.requests[model] - served[model] for model in self.models}
        total = sum(self.requests.values())
        attainment = sum(served.values()) / total if total else 1.0
        replicas = sum(len(group.models) for group in placement.groups)
        latency_s = float(outcome.mean_latency_s) if attainment > 0 else 0.0
        tie = replicas * REPLICA_WEIGHT - latency_s * LATENCY_WEIGHT
        utilisation = tuple(float(share) for share in outcome.utilisation)
        return Trial(placement, Score(attainment, tie), unserved, utilisation)
