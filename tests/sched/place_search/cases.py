"""Random small placement problems, from a seed."""

import random
from typing import NamedTuple

import numpy as np

from blocks.sched.place_search import Memory, count_placements
from blocks.sched.profile import Configuration, Profile, bundled_profile
from blocks.sched.workload import Workload, gamma_workload, merge, power_law_rates

GB = 10**9
KNOWN = bundled_profile("bert-1.3b")


class Case(NamedTuple):
    """What ``place`` is asked."""

    workload: Workload
    profiles: dict[str, Profile]
    num_devices: int
    memory_bytes: int
    configurations: tuple[Configuration, ...]


def draw(
    seed: int,
    max_models: int = 6,
    max_devices: int = 8,
    requests: int = 400,
    max_slots: float = 2.5,
    max_placements: float = float("inf"),
) -> Case:
    """A problem of up to so many models and devices: few sizes of models, bursty skewed traffic,
    memory for one model to ``max_slots`` on a device, some configurations. Memory, then
    configurations, then devices shrink until there are at most ``max_placements``."""
    rng = random.Random(seed)
    num_models = rng.randint(1, max_models)
    num_devices = rng.randint(1, max_devices)
    sizes = [1.0, rng.choice([1.2, 1.6, 2.5, 4.0])]
    profiles = {}
    for index in range(num_models):
        factor = rng.choice(sizes)
        profiles[f"m{index}"] = KNOWN.scaled(
            f"m{index}", time=factor, weight=factor**0.5, why="a case"
        )
    heaviest = max(profile.timing((1, 1)).device_bytes() for profile in profiles.values())
    memory_bytes = int(heaviest * rng.uniform(1.0, max_slots))
    offered = rng.uniform(0.2, 1.4) * num_devices  # device seconds a second
    shares = np.random.default_rng(seed).dirichlet(np.full(num_models, rng.choice([1.0, 20.0])))
    rates = [
        max(0.02, float(share) * offered / profiles[f"m{index}"].latency_s())
        for index, share in enumerate(shares)
    ]
    workload = gamma_workload(
        rates,
        rng.choice([1.0, 3.0, 6.0]),
        requests / sum(rates),
        np.random.default_rng(seed + 1),
        list(profiles),
    )
    slo = rng.choice([1.0, 2.0, 5.0, 10.0])
    limits = {model: slo * profile.latency_s() * 1.0001 for model, profile in profiles.items()}
    known = [Configuration(1, 1), Configuration(1, 2), Configuration(2, 1), Configuration(1, 4)]
    known += [Configuration(2, 2), Configuration(1, 8), Configuration(2, 4)]
    others = rng.sample(known[1:], rng.randint(1, 3))
    chosen = tuple(sorted([known[0], *others]))
    names = list(profiles)
    while (
        count_placements(Memory(profiles, memory_bytes), names, chosen, num_devices)
        > max_placements
    ):
        if memory_bytes > heaviest:
            memory_bytes = max(heaviest, int(memory_bytes * 0.85))
        elif len(chosen) > 1:
            chosen = chosen[:-1]
        else:
            num_devices -= 1
    return Case(workload.with_slo(limits), profiles, num_devices, memory_bytes, chosen)


def drifting(seed: int) -> tuple[Workload, dict[str, Profile], int, int, float]:
    """Traffic that wanders over the models from window to window, on few devices with room for
    some of them: workload, profiles, devices, bytes of each, seconds of a window."""
    rng = random.Random(seed)
    num_models, num_devices, every_s = rng.randint(3, 10), rng.randint(1, 4), 30.0
    profiles = {f"m{index}": KNOWN.renamed(f"m{index}") for index in range(num_models)}
    memory_bytes = int(KNOWN.timing((1, 1)).device_bytes() * rng.uniform(1.0, 2.5))
    total = rng.uniform(0.3, 1.0) * num_devices / KNOWN.latency_s()
    rates = power_law_rates(num_models, total, rng.choice([0.5, 1.5, 2.5]))
    step, cv = rng.randint(0, 3), rng.choice([1.0, 3.0])
    whole = []
    for index in range(rng.randint(2, 5)):
        drawn = np.random.default_rng(100 * seed + index)
        part = gamma_workload(np.roll(rates, step * index), cv, every_s, drawn, list(profiles))
        whole.append(part.delayed(every_s * index))
    limit_s = rng.choice([1.5, 3.0, 8.0]) * KNOWN.latency_s()
    return merge(whole).with_slo(limit_s), profiles, num_devices, memory_bytes, every_s
