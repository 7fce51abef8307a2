"""Random programs under random delays: no hang, no changed bit, no order fault launched."""

import random
import subprocess
import sys

import pytest

from tests.pipeline.faults import mutant
from tests.pipeline.random_programs import random_schedule
from tests.pipeline.soundness import in_channel_order, sound
from tests.pipeline.tiny_programs import refuses, run_in_process


def run_apart(first_seed: int, count: int) -> str:
    """Many programs in a process of its own, without the type checks of the test run."""
    code = (
        "from tests.pipeline.tiny_programs import run_many\n"
        f"print('wrong:', run_many({first_seed}, {count}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return run.stdout.strip().rpartition("\n")[2] or run.stderr


def test_annotations_hold() -> None:
    assert all(run_in_process(seed) for seed in range(4))


def test_300_random_programs() -> None:
    assert run_apart(0, 300) == "wrong: []"


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_10_000_random_programs() -> None:
    assert run_apart(1_000, 10_000) == "wrong: []"


def test_order_faults_are_refused_before_launch() -> None:
    num_faults = 0
    for seed in range(40):
        rng = random.Random(seed)
        schedule = random_schedule(rng, lowered=True, max_sequences=2, max_slices=3)
        for _ in range(4):
            changed = mutant(rng, schedule)
            if changed is None or (sound(changed) and in_channel_order(changed)):
                continue
            num_faults += 1
            assert refuses(changed), changed
    assert num_faults > 50
