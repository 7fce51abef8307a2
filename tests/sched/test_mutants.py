"""Planted bugs: the simulator must catch every one of them within 50,000 steps.

Each hunt is a process of its own, without the type checks of the test run, which would do part of
the catching and most of the waiting.
"""

import subprocess
import sys

import pytest

from tests.sched.mutants import MUTANTS, SEEDS, STEPS


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.sched.mutants", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_sources_as_they_are_pass() -> None:
    done = run()
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str) -> None:
    done = run(name)
    assert done.stdout.startswith("seed "), done.stdout + done.stderr
    assert done.returncode == 0, f"not caught in {len(SEEDS) * STEPS} steps"
