"""Figures of the simulated cluster: queueing theory, speed, faults."""

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benches.figures.row import Measured, Row
from benches.queueing import APART, LOADS, PIPELINE, enough, largest_overhead, simulated_latency_s
from blocks.sched.cluster_sim import ClusterSim
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
USUAL, FULL = LOADS[:-1], LOADS[-1:]


def rows() -> Iterator[Row]:
    for loads, nightly in ((USUAL, False), (FULL, True)):
        where = f"loads {loads[0]} to {loads[-1]} of 2" if loads is USUAL else "load 1.9 of 2"
        yield Row(
            f"simulated mean latency against M/D/1, two models on two devices, apart and as a "
            f"pipeline, even and 1 : 4, {where}",
            "within 1 %",
            NIGHTLY if nightly else COMMAND,
            lambda loads=loads: _latencies(loads),
            nightly=nightly,
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
        "one of 16 groups changes: time to simulate again against a first simulation",
        "",
        COMMAND,
        _again,
    )
    for count, nightly in ((200_000, False), (5_000_000, True)):
        yield Row(
            f"{count:,} simulated requests with groups that stop, models that do not load and "
            "clocks that jump",
            "each answered once, no stage taken twice, as if nothing had been afterwards",
            NIGHTLY if nightly else COMMAND,
            lambda count=count: _faults(count),
            nightly=nightly,
        )


def _latencies(loads: Sequence[float]) -> Measured:
    worst, where = 0.0, ""
    for load in loads:
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
