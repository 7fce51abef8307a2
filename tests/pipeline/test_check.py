"""The proof of schedules: random valid ones pass, every injected fault is refused."""

import random
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import (
    Action,
    Deadlock,
    Kind,
    Schedule,
    check_schedule,
    lower,
    simulate,
)
from tests.pipeline.random_programs import random_schedule

SEEDS = st.integers(0, 2**32)


@given(SEEDS)
def test_random_programs_pass(seed: int) -> None:
    check_schedule(random_schedule(random.Random(seed)))
    check_schedule(random_schedule(random.Random(seed), lowered=True))


@given(SEEDS)
def test_lowering_passes_and_takes_no_longer(seed: int) -> None:
    rng = random.Random(seed)
    schedule = random_schedule(rng)
    lowered = lower(schedule)
    check_schedule(lowered)
    cost = {kind: rng.randint(1, 9) for kind in Kind}
    far = {kind: rng.randint(0, 3) for kind in Kind}

    def makespan(schedule: Schedule) -> object:
        return simulate(schedule, lambda a: cost[a.kind], transfer=lambda a: far[a.kind]).makespan

    assert makespan(schedule) == makespan(lowered)
    again = [tuple(a for a in program if a.kind.computes) for program in lowered.programs]
    assert tuple(again) == schedule.programs


def test_the_checker_agrees_with_a_search_for_cycles() -> None:
    """On random programs with one random change; in a process of its own, without the type checks
    of the test run."""
    code = (
        "from tests.pipeline.soundness import disagreements\n"
        "count, found = disagreements(range(600))\n"
        "print(count > 5000, found[:1])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "True []\n", run.stderr or run.stdout


def test_every_injected_order_fault_is_refused() -> None:
    """Dependent actions swapped, any action dropped, doubled or sent elsewhere, messages of a
    channel swapped: at every place of every program. In a process of its own, without the type
    checks of the test run."""
    code = (
        "from tests.pipeline.faults import FAMILIES, count_refused\n"
        "for name, num_chunks in FAMILIES:\n"
        "    count, missed = count_refused(name, num_chunks)\n"
        "    assert count > 150 and not missed, (name, count, missed[:1])\n"
        "print('all refused')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "all refused", run.stderr


def program(*texts: str) -> tuple[Action, ...]:
    return tuple(Action.parse(text, 0) for text in texts)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("F0(0,0) SF0>1(0,0) RB0>1(0,0)", None, "rank 0: expected BW0(0,0), or B0(0,0) and W0"),
        ("F0(0,0) SF0>1(0,0) RB0>1(0,0) B0(0,0)", None, "expected W0(0,0) to go with B0(0,0), got"),
        ("SF0>1(0,0) RB0>1(0,0) BW0(0,0)", None, "rank 0: expected F0(0,0) in its program, got no"),
        ("F0(0,0) RB0>1(0,0) BW0(0,0)", None, "rank 0: expected SF0>1(0,0) in its program"),
        (
            "F0(0,0) SF0>1(0,0) RB0>1(0,0) BW0(0,0) W0(0,0)",
            None,
            "rank 0, index 3, BW0(0,0): expected no W0(0,0) beside it, got W0(0,0) at index 4 too",
        ),
        (
            "F0(0,0) SF0>1(0,0) RB0>1(0,0) BW0(0,0) F0(0,0)",
            None,
            "rank 0, index 4, F0(0,0): expected it once in its program, got it at index 0 already",
        ),
        (
            "SF0>1(0,0) F0(0,0) RB0>1(0,0) BW0(0,0)",
            None,
            "rank 0, index 0, SF0>1(0,0): expected F0(0,0) before it, got it at index 1",
        ),
        (
            "F0(0,0) SF0>1(0,0) BW0(0,0) RB0>1(0,0)",
            None,
            "rank 0, index 2, BW0(0,0): expected RB0>1(0,0) before it, got it at index 3",
        ),
        (
            "F0(0,0) SF0>0(0,0) RB0>1(0,0) BW0(0,0)",
            None,
            "rank 0, index 1, SF0>0(0,0): expected a peer among the stages [1], got 0",
        ),
        (
            "F0(0,0) RB0>1(0,0) SF0>1(0,0) BW0(0,0)",
            None,
            "got rank 0 at RB0>1(0,0) (index 1) waits for SB1>0(0,0) of rank 1 (index 3); "
            "rank 1 at RF1>0(0,0) (index 0) waits for SF0>1(0,0) of rank 0 (index 2)",
        ),
    ],
)
def test_what_is_wrong_is_said(first: str, second: str | None, said: str) -> None:
    other = second or "RF1>0(0,0) F1(0,0) BW1(0,0) SB1>0(0,0)"
    programs = (program(*first.split()), program(*other.split()))
    with pytest.raises(ValueError, match=re.escape(said)):
        check_schedule(Schedule("wrong", (0, 1), (1,), programs))


def test_receives_in_another_order_than_sends_are_refused() -> None:
    first = program("F0(0,0)", "SF0>1(0,0)", "F0(1,0)", "SF0>1(1,0)")
    first += program("RB0>1(0,0)", "BW0(0,0)", "RB0>1(1,0)", "BW0(1,0)")
    second = program("RF1>0(1,0)", "RF1>0(0,0)", "F1(0,0)", "F1(1,0)")
    second += program("BW1(0,0)", "SB1>0(0,0)", "BW1(1,0)", "SB1>0(1,0)")
    said = "rank 1, index 0, RF1>0(1,0): expected the receive of SF0>1(0,0), which rank 0 sends"
    with pytest.raises(ValueError, match=re.escape(said)):
        check_schedule(Schedule("crossed", (0, 1), (1, 1), (first, second)))


def test_a_recomputation_after_its_backward_is_refused() -> None:
    schedule = Schedule("late", (0,), (1,), (program("F0(0,0)", "BW0(0,0)", "R0(0,0)"),))
    with pytest.raises(ValueError, match=re.escape("expected R0(0,0) before it, got it at index")):
        check_schedule(schedule)


def test_sends_that_cross_work_with_buffers_only() -> None:
    """Both ranks send before they receive."""
    first = program("F0(0,0)", "SF0>1(0,0)", "F0(1,0)", "SF0>1(1,0)")
    first += program("RB0>1(0,0)", "BW0(0,0)", "RB0>1(1,0)", "BW0(1,0)")
    second = program("RF1>0(0,0)", "F1(0,0)", "BW1(0,0)", "SB1>0(0,0)", "RF1>0(1,0)")
    second += program("F1(1,0)", "BW1(1,0)", "SB1>0(1,0)")
    schedule = Schedule("crossing", (0, 1), (1, 1), (first, second))
    assert simulate(schedule, lambda action: 1).makespan > 0
    with pytest.raises(Deadlock, match="deadlock with sends that wait for their receives"):
        check_schedule(schedule)


def test_canonical_order_on_request() -> None:
    backwards = ("B0(0,1)", "B0(0,0)", "W0(0,0)", "W0(0,1)")
    schedule = Schedule("free", (0,), (2,), (program("F0(0,0)", "F0(0,1)", *backwards),))
    check_schedule(schedule)
    with pytest.raises(ValueError, match="sequences ascending, slices descending, got it after W0"):
        check_schedule(schedule, canonical=True)


def test_what_ranks_wait_for_is_proved_without_messages_too() -> None:
    first = program("F0(0,0)", "BW0(0,0)", "F0(1,0)", "BW0(1,0)")
    second = program("F1(0,0)", "F1(1,0)", "BW1(0,0)", "BW1(1,0)")
    with pytest.raises(Deadlock, match="rank 0 at BW0"):
        check_schedule(Schedule("stuck", (0, 1), (1, 1), (first, second)))
