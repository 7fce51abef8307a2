"""Times of schedules: exact, with transfers, and a named end where ranks wait for ever."""

import itertools
import random
import re
import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import Action, Deadlock, Kind, Schedule, simulate
from blocks.pipeline.dependencies import dependencies
from tests.pipeline.random_programs import random_schedule

COST = {"F": Fraction(1, 3), "B": Fraction(1, 2), "W": Fraction(1, 5), "BW": Fraction(2, 3)}


def cost(action: Action) -> Fraction:
    return COST[action.kind.value]


def program(*texts: str) -> tuple[Action, ...]:
    return tuple(Action.parse(text, 0) for text in texts)


def two_ranks() -> Schedule:
    first = program("F0(0,0)", "F0(0,1)", "BW0(0,1)", "B0(0,0)", "W0(0,0)")
    second = program("F1(0,0)", "F1(0,1)", "BW1(0,1)", "B1(0,0)", "W1(0,0)")
    return Schedule("two", (0, 1), (2,), (first, second))


def test_times_are_exact() -> None:
    time = simulate(two_ranks(), cost)
    assert [(span.start, span.end) for span in time.spans[1]] == [
        (Fraction(1, 3), Fraction(2, 3)),
        (Fraction(2, 3), 1),
        (1, Fraction(5, 3)),
        (Fraction(5, 3), Fraction(13, 6)),
        (Fraction(13, 6), Fraction(71, 30)),
    ]
    assert time.spans[0][2].start == Fraction(5, 3)
    assert time.makespan == Fraction(5, 3) + Fraction(2, 3) + Fraction(1, 2) + Fraction(1, 5)
    busy = 2 * Fraction(1, 3) + Fraction(2, 3) + Fraction(1, 2) + Fraction(1, 5)
    assert time.busy(0) == time.busy(1) == busy
    assert time.idle(1) == time.makespan - busy
    assert time.stalled(1) == 0
    assert time.stalled(0) == 1
    assert time.bubble == 1 - busy / time.makespan


def test_floats_stay_floats() -> None:
    assert isinstance(simulate(two_ranks(), lambda action: 0.5).bubble, float)


def test_transfers_come_on_top_where_the_rank_changes() -> None:
    asked = []

    def transfer(action: Action) -> Fraction:
        asked.append(action)
        return Fraction(1, 7)

    time = simulate(two_ranks(), cost, transfer=transfer)
    assert time.spans[1][0].start == Fraction(1, 3) + Fraction(1, 7)
    assert sorted(map(repr, asked)) == ["RB0>1(0,0)", "RB0>1(0,1)", "RF1>0(0,0)", "RF1>0(0,1)"]


@pytest.mark.parametrize("transfer", [None, lambda action: Fraction(1, 7)])
def test_critical_path_adds_up_to_the_makespan(transfer: object) -> None:
    time = simulate(two_ranks(), cost, transfer=transfer)  # type: ignore[arg-type]
    path = time.critical_path()
    assert path[0].start == 0
    assert path[-1].end == time.makespan
    hops = sum(a.action.stage != b.action.stage for a, b in itertools.pairwise(path))
    travel = hops * Fraction(1, 7) if transfer else 0
    assert sum(span.end - span.start for span in path) + travel == time.makespan


def test_deadlock_names_every_stuck_rank() -> None:
    first = program("F0(0,0)", "BW0(0,0)", "F0(1,0)", "BW0(1,0)")
    second = program("F1(0,0)", "F1(1,0)", "BW1(0,0)", "BW1(1,0)")
    schedule = Schedule("stuck", (0, 1), (1, 1), (first, second))
    said = (
        "deadlock: expected every rank to reach its end, got "
        "rank 0 at BW0(0,0) (index 1) waits for BW1(0,0) of rank 1 (index 2); "
        "rank 1 at F1(1,0) (index 1) waits for F0(1,0) of rank 0 (index 2)"
    )
    with pytest.raises(Deadlock, match=re.escape(said)):
        simulate(schedule, cost)


def test_what_nobody_does_is_named() -> None:
    schedule = Schedule("gap", (0, 1), (1,), (program("W0(0,0)"), program("F1(0,0)")))
    with pytest.raises(Deadlock) as raised:
        simulate(schedule, cost)
    assert "waits for B0(0,0) or BW0(0,0), which rank 0 never does" in str(raised.value)
    assert "rank 1 at F1(0,0) (index 0) waits for F0(0,0), which rank 0 never" in str(raised.value)


def test_a_rank_that_waits_for_its_own_later_action_is_stuck() -> None:
    schedule = Schedule("self", (0,), (2,), (program("F0(0,1)", "F0(0,0)"),))
    with pytest.raises(Deadlock, match=re.escape("waits for F0(0,0) of rank 0 (index 1)")):
        simulate(schedule, cost)


@pytest.mark.parametrize("time", [-1, float("nan")])
def test_negative_times_are_refused(time: float) -> None:
    with pytest.raises(ValueError, match=r"duration of F0\(0,0\): expected zero or more, got"):
        simulate(two_ranks(), lambda action: time)
    with pytest.raises(ValueError, match=r"transfer of RF1>0\(0,0\): expected zero or more, got"):
        simulate(two_ranks(), cost, transfer=lambda action: time)


def test_nothing_to_do_takes_no_time() -> None:
    time = simulate(Schedule("none", (0,), (1,), ((),)), cost)
    assert (time.makespan, time.bubble, time.critical_path()) == (0, 0, ())


def test_skip_inputs_hold_up_their_consumer() -> None:
    programs = (program("F0(0,0)"), program("F1(0,0)"), program("F2(0,0)"))
    schedule = Schedule("skip", (0, 1, 2), (1,), programs, ((0, 1), (1, 2), (0, 2)))
    slow = {0: 2, 1: 1, 2: 1}
    far = {(2, 0): 5}

    def transfer(action: Action) -> int:
        return far.get((action.stage, action.peer), 0)

    time = simulate(schedule, lambda action: slow[action.stage], transfer=transfer)
    assert time.spans[2][0].start == 7
    assert [span.action.stage for span in time.critical_path()] == [0, 2]


@given(st.integers(0, 2**32))
def test_the_graph_says_what_needs_says(seed: int) -> None:
    schedule = random_schedule(random.Random(seed))
    graph = dependencies(schedule)
    for number, action in enumerate(graph.actions):
        if action.kind in (Kind.FORWARD, Kind.BACKWARD, Kind.FULL_BACKWARD):
            rank = graph.ranks[number]
            far = [a for a in schedule.needs(action) if schedule.placement[a.stage] != rank]
            found = [graph.actions[before] for before in graph.remote[number]]
            assert [a.on(Kind.BACKWARD) if a.kind.is_backward else a for a in found] == far


def test_130_000_actions_take_under_a_second() -> None:
    code = """
import time
from blocks.pipeline import Action, Kind, Schedule, simulate
ranks, sequences = 64, 1000
def program(rank):
    ahead = ranks - rank
    for index in range(sequences + ahead):
        if index < sequences:
            yield Action(Kind.FORWARD, rank, 0, index, 0)
        if index >= ahead:
            yield Action(Kind.FULL_BACKWARD, rank, 0, index - ahead, 0)
programs = tuple(tuple(program(rank)) for rank in range(ranks))
schedule = Schedule("long", tuple(range(ranks)), (1,) * sequences, programs)
began = time.process_time()
found = simulate(schedule, lambda action: 1 if action.kind is Kind.FORWARD else 2)
print(time.process_time() - began, found.makespan)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, makespan = run.stdout.split()
    assert int(makespan) == 3 * (1000 + 63)
    assert float(seconds) < 1.5, "quick alone, with room for a busy machine"
