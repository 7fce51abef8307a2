"""Figures of the simulated cluster: queueing theory, speed, faults."""

import time
from collections.abc import Callable, Iterator

import numpy as np

from benches.alpaserve_paper import replay
from benches.figures.row import Measured, Row
from benches.generation_cluster import APART as APART_8
from benches.generation_cluster import PROFILES, SETTINGS, bursty, highest_rate
from benches.generation_cluster import SHARED as SHARED_8
from benches.queueing import APART, LOADS, PIPELINE, enough, largest_overhead, simulated_latency_s
from blocks.sched.cluster_sim import ClusterSim
from blocks.sched.cluster_sim.generation import Admission, simulate_generation
from blocks.sched.cluster_sim.queueing import (
    apart_latency_s,
    largest_communication_overhead,
    largest_uneven_overhead,
    pipeline_latency_s,
)
from blocks.sched.placement import Placement
from blocks.sched.profile import Configuration, bundled_profile
from blocks.sched.workload import gamma_workload, power_law_rates

COMMAND = "python -m benches.figures --area place"
NIGHTLY = COMMAND + " --nightly"


def rows() -> Iterator[Row]:
    yield Row(
        "simulated mean latency against M/D/1, two models on two devices, apart and as a pipeline, "
        f"even and 1 : 4, loads {LOADS[0]} to {LOADS[-1]} of 2",
        "within 1 %",
        COMMAND,
        _latencies,
    )
    for name, uneven, formula in (
        ("communication", False, largest_communication_overhead),
        ("uneven stages", True, largest_uneven_overhead),
    ):
        yield Row(
            f"largest overhead of {name} that a pipeline may have, simulated against closed form, "
            f"loads {LOADS[0]} to {LOADS[-1]} of 2",
            "within 1 %",
            COMMAND,
            lambda uneven=uneven, formula=formula: _overheads(uneven, formula),
        )
    for batching in (False, True):
        yield Row(
            "requests simulated a second of one core, 48 models on 16 devices"
            + (", batching" if batching else ""),
            ">= 200,000",
            COMMAND,
            lambda batching=batching: _speed(batching),
        )
    yield Row(
        "simulated attainment against AlpaServe's published simulation, 24 x BERT-2.6B on 16 "
        "V100s, replicas and pipelines, 15 SLO scales",
        "",
        COMMAND,
        _published,
    )
    yield Row(
        "models that generate: time to the first token as predicted on arrival, on the right side "
        "of a limit that half of them miss, 8 devices, one model a group and all models in four",
        "",
        COMMAND,
        _predictions,
    )
    yield Row(
        "models that generate, 4 x 8B on 8 simulated H100s (a roofline), bursty (CV 6): traffic at "
        "99 % of TTFT 1 s and TPOT 40 ms when groups are shared, against one model a group",
        ">= 1.5 x",
        NIGHTLY,
        _generation,
        nightly=True,
    )
    yield Row(
        "one of 16 groups changes: time to simulate again against a first simulation",
        "",
        COMMAND,
        _again,
    )
    for count, nightly in ((1_000_000, False), (20_000_000, True)):
        yield Row(
            f"{count:,} simulated requests with groups that stop, models that do not load and "
            "clocks that jump",
            "each answered once, no stage taken twice, as if nothing had been afterwards",
            NIGHTLY if nightly else COMMAND,
            lambda count=count: _faults(count),
            nightly=nightly,
        )


def _latencies() -> Measured:
    worst, where = 0.0, ""
    for load in LOADS:
        count = enough(load)
        cases = [("pipeline", PIPELINE, [0.5, 0.5], 0.5, pipeline_latency_s(load, 1.0, 0.5))]
        for share in (0.5, 0.2):
            if load * (1 - share) < 0.96:
                exact = apart_latency_s(load, 1.0, share)
                cases.append((f"apart {share}", APART, [1.0], share, exact))
        for name, placement, stage_s, share, exact in cases:
            got = simulated_latency_s(placement, stage_s, load, share, count)
            off = abs(got / exact - 1)
            if off >= worst:
                worst, where = off, f"{name}, load {load}"
    return Measured(f"at most {worst:.2%} off ({where})", worst <= 0.01)


def _overheads(uneven: bool, formula: Callable[[float], float]) -> Measured:
    off = {load: abs(largest_overhead(load, uneven) / formula(load) - 1) for load in LOADS}
    worst = max(off, key=lambda load: off[load])
    return Measured(f"at most {off[worst]:.2%} off (load {worst})", off[worst] <= 0.01)


def _cluster(batching: bool, duration_s: float) -> tuple[ClusterSim, Placement]:
    names = [f"model {index}" for index in range(48)]
    profiles = {name: bundled_profile("bert-1.3b") for name in names}
    rng = np.random.default_rng(0)
    workload = gamma_workload(power_law_rates(48, 64.0), 4.0, duration_s, rng, names, slo_s=0.5)
    hosted = [names[index * 3 : index * 3 + 3] for index in range(16)]
    placement = Placement.equal_groups(16, Configuration(1, 1), hosted)
    return ClusterSim(profiles, workload, batching=batching), placement


def _speed(batching: bool) -> Measured:
    names = [f"model {index}" for index in range(48)]
    sim, apart = _cluster(batching, 16_000.0)
    shared = Placement.equal_groups(16, Configuration(1, 8), [names, names])
    found = []
    for placement in (apart, shared):
        began = time.process_time()
        sim.run(placement)
        found.append(sim.workload.num_requests / (time.process_time() - began))
    return Measured(
        f"{found[0] / 1e6:.1f} million (replicas alone), {found[1] / 1e6:.1f} million (two "
        "pipelines of eight)",
        min(found) >= 200_000,
    )


def _again() -> Measured:
    sim, placement = _cluster(False, 4000.0)
    began = time.process_time()
    sim.run(placement)
    first = time.process_time() - began
    began = time.process_time()
    sim.run(placement.hosting("model 47", 0))
    again = time.process_time() - began
    return Measured(f"{again * 1e3:.1f} ms against {first * 1e3:.1f} ms", None)


def _faults(count: int) -> Measured:
    from tests.sched.cluster.storm import storms

    told = storms(count)
    text = (
        f"all of {told.requests:,}; {told.faults:,} faults gave {told.otherwise:,} another answer"
    )
    return Measured(text, True)


def _published() -> Measured:
    replayed = replay()
    off = [100 * (one.mean - one.published) for one in replayed.values()]
    near = sum(abs(one.mean - one.published) <= 2 * one.deviation for one in replayed.values())
    mean, worst = sum(map(abs, off)) / len(off), max(off, key=abs)
    text = (
        f"{mean:.1f} points off on average, {worst:+.1f} at worst; {near} of {len(off)} within two "
        "standard deviations of traces of that length"
    )
    return Measured(text, None)


def _predictions() -> Measured:
    workload, told = bursty(40.0, 60.0, 1), []
    everyone = Admission(ttft=False, tpot=False)  # so that predictions can be held against truth
    worst = 1.0
    for where in (APART_8["two replicas of each"], SHARED_8["four groups of two, all models"]):
        outcome = simulate_generation(
            where, PROFILES, workload, settings=SETTINGS, admission=everyone
        )
        limit_s = float(np.median(outcome.ttft_s))  # half of them are late
        late, thought = outcome.ttft_s > limit_s, outcome.predicted_ttft_s > limit_s
        near = abs(outcome.predicted_ttft_s / outcome.ttft_s - 1)
        worst = min(worst, float((late == thought).mean()))
        told.append(
            f"{(late == thought).mean():.1%} of limit {limit_s:.2f} s, "
            f"median {np.median(near):.0%} off"
        )
    return Measured("simulated: " + "; ".join(told), None)


def _generation() -> Measured:
    rates = {
        kind: {name: highest_rate(where) for name, where in places.items()}
        for kind, places in (("apart", APART_8), ("shared", SHARED_8))
    }
    best = {kind: max(found, key=lambda name: found[name]) for kind, found in rates.items()}
    apart, shared = (rates[kind][best[kind]] for kind in ("apart", "shared"))
    text = (
        f"simulated: {shared / apart:.1f} x: {shared:g} requests/s ({best['shared']}) against "
        f"{apart:g} ({best['apart']})"
    )
    return Measured(text, shared >= 1.5 * apart)
