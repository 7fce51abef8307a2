"""What the speed bench makes of its runs."""

import itertools
import math

import pytest

from benches.pipeline_speed_result import QUIET, WAYS, Result, Run, Setting


def run_of_seconds(seconds: float, waited: float = 1.0, busy: float | None = None) -> Run:
    busy = seconds if busy is None else busy
    return Run(seconds, busy, 0.9 * busy, waited, 0.95 * seconds, 0.01)


def make_result() -> Result:
    times = {"one thread": 4.0, "two threads": 2.5, "sliced alone": 4.2}
    times |= {"unsliced pair": 4.1, "sliced pair": 2.6}
    runs = {
        way: [
            run_of_seconds(seconds + 0.01 * i, busy=4.5 if way == "sliced pair" else None)
            for i in range(-1, 2)
        ]
        + [run_of_seconds(9.0, waited=QUIET + 0.2)]
        for way, seconds in times.items()
    }
    return Result(Setting(num_wanted=3), runs, [1.1, 1.0, 1.2, 1.1])


def test_factors_make_the_speed_up() -> None:
    found = make_result()
    assert found.speed_up("sliced pair") == pytest.approx(4.0 / 2.6)
    assert math.prod(found.factors.values()) == pytest.approx(found.speed_up("sliced pair"))
    assert found.overhead == pytest.approx(4.2 / 4.0, rel=1e-3)


def test_disturbed_runs_do_not_count() -> None:
    found = make_result()
    assert found.num_counted("sliced pair") == 3
    assert found.enough
    # where few count, the quietest five are shown, and it is said that these are not enough
    few = {way: [run_of_seconds(1.0 + i, waited=2.0 - i) for i in range(2)] for way in WAYS}
    short = Result(Setting(num_wanted=2), few, [1.0])
    assert not short.enough
    assert [run.seconds for run in short.kept("one thread")] == [2.0, 1.0]
    assert "1 of 2 runs count" in short.report()


def test_slices_cover_the_row() -> None:
    for balanced in (False, True):
        setting = Setting(balanced=balanced, num_slices=8)
        bounds = setting.bounds("sliced pair")
        assert bounds[0] == 0
        assert bounds[-1] == 2048
        assert len(bounds) == 9
        assert setting.bounds("unsliced pair") == (0, 2048)
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    assert lengths[0] > lengths[-1], "equal arithmetic makes later slices shorter"
