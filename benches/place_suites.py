"""SLO attainment of three ways to place many models, over rate, CV, SLO and devices, as plain data.

The suites follow AlpaServe's: BERT-1.3B fine-tuned 48 times on 16 V100 (13 GB for weights), Gamma
arrivals with rates of a power law, a limit of so many times the latency alone. Placements are
searched for on one draw of the traffic and judged on another, but swapping is granted what
AlpaServe grants Clockwork++: it knows the traffic it is judged on, and swaps cost nothing.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from blocks.sched.cluster_sim import ALPASERVE_FAST, simulate
from blocks.sched.place_search import place, selective_replication, swapping
from blocks.sched.profile import Profile, bundled_profile
from blocks.sched.workload import Workload, gamma_workload, power_law_rates

MEMORY_BYTES = 13 * 10**9
WINDOW_S = 60.0
REQUESTS = 8000
SETTINGS: dict[str, Any] = {"overheads": ALPASERVE_FAST}
ENOUGH = 0.99


class Point(NamedTuple):
    """Traffic and cluster of one simulation.

    rate: requests a second, all models together.
    cv: of the gaps between requests of a model.
    slo: time limit, in latencies of the model alone on one device.
    """

    rate: float = 20.0
    cv: float = 4.0
    slo: float = 5.0
    num_devices: int = 16
    num_models: int = 48


class Attained(NamedTuple):
    """SLO attainment of each way."""

    point: Point
    replication: float
    swapping: float
    ours: float

    @property
    def in_order(self) -> bool:
        """Replication <= swapping <= ours, as published, to a thousandth of the requests."""
        return self.replication <= self.swapping + 0.001 and self.swapping <= self.ours + 0.001


SWEEPS: dict[str, Sequence[float]] = {
    "rate": (5, 10, 20, 40, 60, 80),
    "cv": (1, 2, 3, 4, 6, 8),
    "slo": (1, 1.5, 2, 3, 5, 10),
    "num_devices": (12, 16, 20, 24, 32, 48),
}


@functools.cache
def profiles(num_models: int) -> dict[str, Profile]:
    known = bundled_profile("bert-1.3b")
    return {f"bert-{index}": known.renamed(f"bert-{index}") for index in range(num_models)}


def traffic(point: Point, seed: int, requests: int = REQUESTS) -> Workload:
    """At least 100 s and about so many requests."""
    limit_s = point.slo * bundled_profile("bert-1.3b").latency_s()
    return gamma_workload(
        power_law_rates(point.num_models, point.rate),
        point.cv,
        max(100.0, requests / point.rate),
        np.random.default_rng(seed),
        list(profiles(point.num_models)),
        limit_s,
    )


def ours(point: Point, seed: int = 1) -> float:
    """What the placement searched for on another draw attains."""
    known = profiles(point.num_models)
    plan = place(
        traffic(point, seed),
        known,
        point.num_devices,
        MEMORY_BYTES,
        local_simulations=0,
        settings=SETTINGS,
    )
    return simulate(plan.placement, known, traffic(point, seed + 1), **SETTINGS).attainment


def replicated(point: Point, seed: int = 1) -> float:
    """Selective replication, likewise."""
    known = profiles(point.num_models)
    placement = selective_replication(
        traffic(point, seed), known, point.num_devices, MEMORY_BYTES, SETTINGS
    )
    return simulate(placement, known, traffic(point, seed + 1), **SETTINGS).attainment


def swapped(point: Point, seed: int = 1) -> float:
    """Selective replication solved anew every minute, free of cost, with foresight."""
    known, workload = profiles(point.num_models), traffic(point, seed + 1)
    timeline = swapping(
        workload,
        known,
        point.num_devices,
        MEMORY_BYTES,
        every_s=WINDOW_S,
        bytes_per_s=float("inf"),
        settings=SETTINGS,
    )
    return timeline.serve(known, workload, **SETTINGS).attainment


def attained(point: Point) -> Attained:
    return Attained(point, replicated(point), swapped(point), ours(point))


def curve(axis: str, base: Point | None = None) -> list[Attained]:
    """Attainment over one axis of ``SWEEPS``, the others as in ``base``."""
    base = base or Point()
    return [attained(base._replace(**{axis: value})) for value in SWEEPS[axis]]


def furthest(axis: str, values: Sequence[float], base: Point, way: Any) -> float | None:
    """The last of ``values``, from easy to hard, up to which the way attains 99 % throughout; None
    where the first is too much."""
    reached = None
    for value in values:
        if way(base._replace(**{axis: value})) < ENOUGH:
            break
        reached = value
    return reached
