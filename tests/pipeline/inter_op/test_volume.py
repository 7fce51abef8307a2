"""Hundreds of cases against every plan, in a process without the type checks of the test run."""

import subprocess
import sys

import pytest


def compared_apart(first: int, stop: int, max_layers: int, devices_per_host: int | None) -> str:
    code = (
        "import random\n"
        "from blocks.pipeline import DoesNotFit\n"
        "from tests.pipeline.inter_op.stage_tables import best_simulated, draw\n"
        "solved = 0\n"
        f"for seed in range({first}, {stop}):\n"
        "    drawn = draw(random.Random(seed), "
        f"max_layers={max_layers}, devices_per_host={devices_per_host})\n"
        "    best, _ = best_simulated(drawn)\n"
        "    try:\n"
        "        plan = drawn.partition(effort=10**6)\n"
        "    except DoesNotFit:\n"
        "        assert best == float('inf'), seed\n"
        "    else:\n"
        "        assert plan.makespan_s == best, (seed, plan.makespan_s, best)\n"
        "        assert plan.gap <= 1e-12, (seed, plan.gap)\n"
        "        solved += 1\n"
        "print('gap 0,', solved, 'solved')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return run.stdout.strip() or run.stderr


def test_three_hundred_cases_up_to_6_layers_and_8_devices():
    found = compared_apart(200, 500, 6, None)
    assert found.startswith("gap 0,"), found
    assert int(found.split()[2]) > 150, "most have a plan"


@pytest.mark.nightly
@pytest.mark.timeout(3600)
def test_two_hundred_cases_up_to_10_layers_and_16_devices():
    found = compared_apart(3000, 3200, 10, 8)
    assert found.startswith("gap 0,"), found
