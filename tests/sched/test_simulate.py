"""The seeded simulation on the reference allocator; the real one is in ``tests/test_contracts``."""

import dataclasses
import os
import subprocess
import sys

import pytest

from blocks.sched import FinishReason, Sequence
from blocks.sched.reference import ReferenceAllocator
from blocks.sched.simulate import Options, Simulation, simulate


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line, in a process without the type checks of the test run: 20 times faster."""
    line = [sys.executable, "-m", "blocks.sched.simulate", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True)


def test_faults_leave_no_wrong_token_no_leak_and_nobody_behind() -> None:
    run = command("--seed", 0, "--seeds", 100, "--steps", 300)
    assert run.returncode == 0, run.stdout
    assert run.stdout.count("0 leaked blocks") == 100


def test_annotations_hold_under_faults() -> None:
    for seed in range(4):
        simulate(Options.from_seed(seed), 200)


@pytest.mark.nightly
def test_many_steps_of_one_seed() -> None:
    run = command("--seed", 7, "--steps", 300_000)
    assert run.returncode == 0, run.stdout


def test_every_fault_and_every_ending_occurs() -> None:
    """A simulation that exercises nothing would pass everything."""
    run = command("--seed", 0, "--seeds", 12, "--steps", 1000)
    total: dict[str, int] = {}
    for line in run.stdout.splitlines():
        if line.startswith("tokens "):
            for pair in line.split(", "):
                name, count = pair.split()
                total[name] = total.get(name, 0) + int(count)
    assert len(total) > 20
    assert all(total.values()), {name for name, count in total.items() if not count}


def test_same_seed_same_events_in_any_process() -> None:
    code = (
        "from blocks.sched.simulate import Options, simulate;"
        "print(simulate(Options.from_seed(5), 400).digest)"
    )
    digests = {simulate(Options.from_seed(5), 400).digest}
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed}
        run = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1
    assert simulate(Options.from_seed(6), 400).digest not in digests


def test_without_faults_nobody_waits_for_more_than_the_work_ahead() -> None:
    quiet = {field.name: 0.0 for field in dataclasses.fields(Options) if "_rate" in field.name}
    quiet |= {"cancel_share": 0.0, "poison_share": 0.0, "arrival_rate": 0.1}
    for seed in range(10):
        options = dataclasses.replace(Options.from_seed(seed), policy="fcfs", **quiet)
        simulation = Simulation(options)
        deadlines: dict[str, int] = {}
        for _ in range(300):
            before = set(simulation.live)
            simulation.step()
            ahead = 2 * simulation.liveness_bound() + 100
            for request_id in simulation.live.keys() - before:
                deadlines[request_id] = simulation.num_steps + ahead
            for request_id in before - simulation.live.keys():
                assert simulation.num_steps <= deadlines[request_id], request_id


def test_failure_names_seed_and_step() -> None:
    class Leaky(ReferenceAllocator):
        def free(self, sequence_id: int, num_valid_tokens: int | None = None) -> None:
            self._tables[-sequence_id] = self._tables.pop(sequence_id)

    with pytest.raises(AssertionError, match=r"seed 1, step \d+: AssertionError: "):
        simulate(Options.from_seed(1), 300, Leaky)


def test_command_line_prints_options_and_summary() -> None:
    run = command("--seed", 3, "--steps", 200)
    assert run.returncode == 0, run.stderr
    assert "Options(seed=3, num_blocks=" in run.stdout
    assert "0 leaked blocks, digest " in run.stdout
    assert "200 of 200 steps" in run.stderr


def test_requests_that_break_every_step_end_and_nobody_else_does() -> None:
    class Poisoned(Simulation):
        def _end(self, sequence: Sequence, reason: FinishReason) -> None:
            poisoned = sequence.request.request_id in self.poisoned
            assert (reason is FinishReason.FAILED) == poisoned, sequence
            super()._end(sequence, reason)

    quiet = {field.name: 0.0 for field in dataclasses.fields(Options) if "_rate" in field.name}
    quiet |= {"cancel_share": 0.0, "poison_share": 0.1}
    num_poisoned = 0
    for seed in range(10):
        options = dataclasses.replace(Options.from_seed(seed), **(quiet | {"arrival_rate": 0.3}))
        simulation = Poisoned(options)
        for _ in range(150):
            simulation.step()
        simulation.options = dataclasses.replace(options, arrival_rate=0.0)
        for _ in range(1000 * options.max_in_flight):
            if simulation.live:
                simulation.step()
        assert not simulation.live
        num_poisoned += len(simulation.poisoned)
        failed_steps = simulation.scheduler.counters.num_failed_steps
        most = 8 * len(simulation.poisoned) * options.max_in_flight  # with those after it
        assert failed_steps <= most, "found in a few failures each"
    assert num_poisoned > 10


def test_the_command_tells_its_progress_in_lines_where_nobody_looks():
    done = command("--steps", 300, "--seeds", 2)
    assert done.returncode == 0
    assert "\r" not in done.stderr
    assert "seed 1: 300 + " in done.stdout
    refused = command("--steps", 0)
    assert refused.returncode == 2
    assert "steps: expected a positive whole number, got 0" in refused.stderr
