"""Four models of 8 billion parameters on eight devices, simulated: apart, and sharing groups.

The profile is a roofline; its assumptions stand in its provenance and are printed by
``python -m benches.generation_cluster``.
"""

import numpy as np

from benches.no_options import no_options
from blocks.sched.cluster_sim.generation import EngineSettings, simulate_generation
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration, Decoder, Device, roofline_profile
from blocks.sched.workload import Workload, gamma_workload, power_law_rates

NAMES = ("a", "b", "c", "d")
SIZE = Decoder(8.03e9, 32, 4096, 131072)
H100 = Device("H100-SXM5-80GB", 4.5e14, 2.6e12, 3.0e11, 1.2e-5, 1.5e-3)
PROFILE = roofline_profile("8B", SIZE, H100, [(1, 1), (2, 1), (4, 1), (8, 1)])
PROFILES = {str(name): PROFILE for name in NAMES}
MEMORY_BYTES = 72 * 10**9
SETTINGS = EngineSettings(token_budget=1024, max_num_seqs=128)
TTFT_S, TPOT_S = 1.0, 0.04
CV = 6.0
LADDER = (4.0, 6.0, 8.0, 12.0, 16.0, 20.0, 24.0, 32.0, 40.0, 48.0, 64.0)
"""Requests a second that are tried one after another."""


def placement(op: int, hosted: list[str]) -> Placement:
    """Groups of ``op`` devices; each hosts the models of its string, which share the memory."""
    groups = []
    for at, models in enumerate(hosted):
        timing = PROFILE.timing((op, 1))
        spare = MEMORY_BYTES - len(models) * timing.weight_bytes[0]
        kv_tokens = spare // len(models) // timing.kv_bytes_per_token
        devices = tuple(range(at * op, at * op + op))
        rooms = (kv_tokens,) * len(models)
        groups.append(Group(devices, Configuration(op, 1), tuple(models), rooms))
    made = Placement(tuple(groups))
    assert made.num_devices == 8, made
    assert not made.problems(PROFILES, MEMORY_BYTES, 8)
    return made


APART = {
    "two replicas of each": placement(1, [*"aabbccdd"]),
    "replicas by popularity": placement(1, [*"aaabbccd"]),
    "two devices for each": placement(2, [*"abcd"]),
}
"""One model a group."""

SHARED = {
    "four groups of two, all models": placement(2, ["abcd"] * 4),
    "two groups of four, all models": placement(4, ["abcd"] * 2),
}


def bursty(rate: float, duration_s: float, seed: int) -> Workload:
    """Popularity as 1 : 1/2 : 1/3 : 1/4, gaps with a CV of 6, prompts of 900 and answers of 140
    tokens on average, both log-normal."""
    rng = np.random.default_rng(seed)
    made = gamma_workload(power_law_rates(4, rate, 1.0), CV, duration_s, rng, NAMES)
    prompts = np.minimum(rng.lognormal(6.4, 0.9, made.num_requests), 6000).astype(np.int32) + 1
    outputs = np.minimum(rng.lognormal(4.6, 0.8, made.num_requests), 1000).astype(np.int32) + 1
    return made.with_lengths(prompts, outputs).with_slo(TTFT_S, TPOT_S)


def attainment(where: Placement, rate: float, duration_s: float = 60.0, seeds: int = 3) -> float:
    """Share of the requests of all seeds that meet both limits."""
    met, asked = 0, 0
    for seed in range(seeds):
        workload = bursty(rate, duration_s, seed)
        outcome = simulate_generation(where, PROFILES, workload, settings=SETTINGS)
        met, asked = met + int(outcome.met.sum()), asked + workload.num_requests
    return met / asked


def highest_rate(where: Placement) -> float:
    """The last of ``LADDER`` up to which at least 99 % of the requests meet both limits."""
    best = 0.0
    for rate in LADDER:
        if attainment(where, rate) < 0.99:
            break
        best = rate
    return best


def main() -> None:
    """Print the profile's assumptions and the highest rates."""
    print(PROFILE.provenance[0].text)
    for kind, places in (("apart", APART), ("shared", SHARED)):
        for name, where in places.items():
            print(f"{kind}, {name}: {highest_rate(where):g} requests/s", flush=True)


if __name__ == "__main__":
    no_options(__doc__)
    main()
