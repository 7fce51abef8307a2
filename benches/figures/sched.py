"""Figures of ``blocks.sched``: what deciding costs, and what the simulator has been through."""

import subprocess
import sys
import time
from collections.abc import Iterator

from benches.bench_sched import NUM_RUNNING, NoAllocator, block_manager, us_per_request
from benches.figures.row import Measured, Row
from blocks.sched.simulate import Options, simulate

COMMAND = "python -m benches.figures --area sched"


def rows() -> Iterator[Row]:
    for num_running in NUM_RUNNING:
        yield _overhead(num_running)
    yield Row(
        "20,000 simulated steps with faults, scheduler on the block manager",
        "0 leaked blocks, 0 wrong tokens",
        COMMAND,
        lambda: _simulate(seeds=40, steps=500),
    )
    yield Row(
        "1,000,000 simulated steps with faults over 400 seeds",
        "0 leaked blocks, 0 wrong tokens",
        COMMAND + " --nightly",
        lambda: _simulate(seeds=400, steps=2500),
        nightly=True,
    )
    yield Row("planted bugs caught by the simulator", "all", COMMAND, _mutants)
    yield Row("time to import blocks.sched, without torch", "<= 0.2 s", COMMAND, _import_time)


def _overhead(num_running: int) -> Row:
    def measure() -> Measured:
        alone = us_per_request(NoAllocator, num_running)
        both = us_per_request(block_manager, num_running)
        text = f"{both:.2f} us (scheduler alone {alone:.2f} us)"
        return Measured(text, both <= 5 if num_running == 256 else None)

    return Row(
        f"schedule + update per running request and step, {num_running} decoding",
        "<= 5 us" if num_running == 256 else "",
        COMMAND,
        measure,
    )


def _simulate(seeds: int, steps: int) -> Measured:
    from tests.test_contracts import make_manager

    began, events = time.monotonic(), 0
    for seed in range(seeds):
        summary = simulate(Options.from_seed(seed), steps, make_manager)
        events += summary.counts["num_preemptions"] + summary.counts["num_failed_steps"]
    seconds = time.monotonic() - began
    return Measured(f"0 and 0; {events:,} preemptions and failed steps, {seconds:.0f} s", True)


def _mutants() -> Measured:
    from tests.sched.mutants import MUTANTS, hunt

    caught = [name for name in MUTANTS if hunt(name) is not None]
    return Measured(f"{len(caught)} of {len(MUTANTS)}", len(caught) == len(MUTANTS))


def _import_time() -> Measured:
    code = (
        "import time; began = time.perf_counter(); import blocks.sched, sys;"
        "print(time.perf_counter() - began, 'torch' in sys.modules)"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
        for _ in range(5)
    ]
    seconds = sorted(float(run[0]) for run in runs)[2]
    ok = seconds <= 0.2 and all(run[1] == "False" for run in runs)
    return Measured(f"{seconds:.3f} s", ok)
