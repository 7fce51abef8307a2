"""Two models on two devices, simulated: the small clusters that queueing theory has answers for."""

from collections.abc import Iterator

import numpy as np

from blocks.sched.cluster_sim import simulate
from blocks.sched.placement import Placement
from blocks.sched.profile import Configuration, single_pass
from blocks.sched.workload import Workload

LOADS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 1.9)
"""Arrivals of both models in the time of one request; two devices are full at 2."""
MOST = 4_000_000
APART = Placement.equal_groups(2, Configuration(1, 1), [["a"], ["b"]])
PIPELINE = Placement.equal_groups(2, Configuration(1, 2), [["a", "b"]])


def poisson(load: float, share: float, count: int, rng: np.random.Generator) -> Workload:
    """``count`` requests, service time 1; each is for model a with chance ``share``."""
    arrival_s = np.cumsum(rng.exponential(1 / load, count))
    model = (rng.random(count) >= share).astype(np.int32)
    none = np.zeros(count, np.int32)
    free = np.full(count, np.inf)
    last = float(arrival_s[-1])
    return Workload(("a", "b"), arrival_s, model, free, free.copy(), none, none.copy(), last)


def workloads(load: float, share: float, count: int, seed: int = 0) -> Iterator[Workload]:
    """The same in pieces that fit into memory."""
    rng = np.random.default_rng(seed)
    while count > 0:
        yield poisson(load, share, min(count, MOST), rng)
        count -= MOST


def mean_latency_s(placement: Placement, stage_s: list[float], workload: Workload) -> float:
    """Simulated; the first two per cent of the requests, while queues fill, are left out."""
    configuration = placement.groups[0].configuration
    profiles = {name: single_pass(name, "any", {configuration: stage_s}, 0) for name in "ab"}
    outcome = simulate(placement, profiles, workload)
    latency_s = outcome.answered_s - workload.arrival_s
    return float(latency_s[workload.num_requests // 50 :].mean())


def simulated_latency_s(
    placement: Placement, stage_s: list[float], load: float, share: float, count: int
) -> float:
    """The mean over all pieces."""
    pieces = [mean_latency_s(placement, stage_s, one) for one in workloads(load, share, count)]
    return sum(pieces) / len(pieces)


def enough(load: float) -> int:
    """Requests after which the mean is known to about a third of a per cent: queues that are
    nearly full forget slowly."""
    return max(1_000_000, int(1.5e5 / (1 - load / 2) ** 2))


def largest_overhead(load: float, uneven: bool, count: int = 1_000_000) -> float:
    """The overhead at which the simulated pipeline is as slow as both models apart, by bisection
    on the same arrivals."""
    (workload,) = workloads(load, 0.5, count, seed=1)
    apart_s = mean_latency_s(APART, [1.0], workload)
    low, high = 1.0, 1.5
    for _ in range(10):
        middle = (low + high) / 2
        stages = [middle / 2, 1 - middle / 2] if uneven else [middle / 2, middle / 2]
        full = load * middle / 2 >= 1
        if full or mean_latency_s(PIPELINE, stages, workload) > apart_s:
            high = middle
        else:
            low = middle
    return (low + high) / 2
