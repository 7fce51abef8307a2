"""Random clusters, workloads and faults, all from one seed."""

import random
from typing import Any

import numpy as np

from blocks.sched.cluster_sim import DISPATCH, Event, Overheads, stage_noise
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import BatchTime, Configuration, Profile, Provenance, Timing
from blocks.sched.workload import Workload, gamma_workload

CONFIGURATIONS = [Configuration(1, 1), Configuration(1, 2), Configuration(2, 3)]
MADE_UP = (Provenance("derived", "made up for a test"),)


def draw_profiles(rng: random.Random, names: list[str]) -> dict[str, Profile]:
    """Profiles of every configuration at batches 1, 2 and 4, in eighths of a second or any."""

    def seconds() -> float:
        return rng.choice([0.125, 0.25, rng.uniform(0.05, 0.5)])

    profiles = {}
    for name in names:
        timings = []
        for configuration in CONFIGURATIONS:
            stages = [seconds() for _ in range(configuration.pp)]
            batches = tuple(
                BatchTime(n, tuple(stage * (1 + (n - 1) * 0.75) for stage in stages))
                for n in (1, 2, 4)
            )
            weights = (rng.randint(1, 9),) * configuration.pp
            timings.append(Timing(configuration, weights, batches=batches))
        profiles[name] = Profile(name, "d", MADE_UP, tuple(timings))
    return profiles


def draw_placement(rng: random.Random, names: list[str], num_groups: int) -> Placement:
    """Groups that host any of the models, none included."""
    groups, device = [], 0
    for _ in range(num_groups):
        configuration = rng.choice(CONFIGURATIONS)
        models = rng.sample(names, rng.randint(0, len(names)))
        devices = tuple(range(device, device + configuration.num_devices))
        device += configuration.num_devices
        groups.append(Group(devices, configuration, tuple(models)))
    return Placement(tuple(groups))


def draw_workload(rng: random.Random, names: list[str], num_requests: int) -> Workload:
    """Gamma traffic with deadlines; or one on a coarse clock, where much happens at once."""
    numbers = np.random.default_rng(rng.randrange(2**32))
    rate = rng.choice([1.0, 4.0, 16.0])
    duration_s = num_requests / rate
    rates = [rate / len(names)] * len(names)
    made = gamma_workload(rates, rng.choice([0.5, 1.0, 3.0]), duration_s, numbers, names)
    slo_s = numbers.uniform(0.1, 3.0, made.num_requests)
    slo_s[numbers.random(made.num_requests) < 0.1] = np.inf
    arrival_s = made.arrival_s
    if rng.random() < 0.3:
        arrival_s = np.floor(arrival_s * 8) / 8
    return Workload.of(names, arrival_s, made.model, slo_s=slo_s, duration_s=duration_s)


def draw_events(
    rng: random.Random, names: list[str], num_groups: int, duration_s: float, count: int
) -> tuple[Event, ...]:
    """Faults of every kind."""
    events = []
    for _ in range(count):
        kind = rng.choice(["down", "up", "up", "load", "unload", "clock"])
        at_s = rng.choice([rng.uniform(0, duration_s), float(rng.randint(0, int(duration_s) + 1))])
        group = rng.randrange(-1, num_groups)
        model = rng.choice(["", *names]) if kind in ("load", "unload") else ""
        seconds = rng.choice([-2.0, 0.5, 30.0]) if kind == "clock" else 0.0
        events.append(Event(at_s, kind, group, model, seconds))
    return tuple(events)


def draw_options(rng: random.Random, workload: Workload) -> dict[str, Any]:
    """Settings of a simulation."""
    batching = rng.random() < 0.4
    noise = None
    if rng.random() < 0.3:
        numbers = np.random.default_rng(rng.randrange(2**32))
        noise = stage_noise(workload.num_requests, 3, 0.2, numbers)
    return {
        "dispatch": "shortest_queue" if batching else rng.choice(DISPATCH),
        "batching": batching,
        "admit": rng.random() < 0.8,
        "overheads": rng.choice([None, Overheads(0.011, (0.004, 0.0025), 0.009)]),
        "noise": noise,
        "retry": rng.random() < 0.7,
    }
