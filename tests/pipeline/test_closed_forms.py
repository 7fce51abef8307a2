"""Simulated times and peaks against closed forms, exactly."""

import subprocess
import sys

import pytest

from blocks.pipeline import SCHEDULES
from tests.pipeline.closed_forms import cases


@pytest.mark.parametrize("family", SCHEDULES)
def test_two_ranks(family: str) -> None:
    """The whole grid is the next test's, without the type checks of the test run."""
    found = list(cases(family, (2,)))
    assert len(found) >= 6
    for case in found:
        assert case.expected == case.found, case


def test_the_grid() -> None:
    code = (
        "from blocks.pipeline import SCHEDULES\n"
        "from tests.pipeline.closed_forms import cases\n"
        "found = [case for family in SCHEDULES for case in cases(family, (1, 3, 4))]\n"
        "print(len(found) > 1400, [case for case in found if case.expected != case.found])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "True []\n", run.stderr or run.stdout
