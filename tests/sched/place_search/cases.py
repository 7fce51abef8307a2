"""Random small placement problems, from a seed."""

import random
from typing import NamedTuple

import numpy as np

from blocks.sched.profile import Configuration, Profile, bundled_profile
from blocks.sched.workload import Workload, gamma_workload

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
) -> Case:
    """A problem of up to so many models and devices: few sizes of models, bursty skewed traffic,
    memory for one model to ``max_slots`` on a device, some configurations."""
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
    return Case(workload.with_slo(limits), profiles, num_devices, memory_bytes, chosen)
