"""Simulated times against closed forms, exactly: idle times, makespans, slices kept."""

import itertools
from collections.abc import Iterable
from fractions import Fraction

import pytest

from blocks.pipeline import Action, Kind, Schedule, Timeline, simulate
from blocks.pipeline.schedules import SCHEDULES

TIMES = [(1, 1, 1), (2, 3, 1), (Fraction(1, 3), Fraction(1, 2), Fraction(1, 5)), (3, 4, 3)]
"""F, B and W of a stage for a whole sequence."""
RANKS = (1, 2, 3, 4, 6)


def timed(
    name: str, num_ranks: int, num_slices: int, num_sequences: int, times: tuple, num_chunks: int
) -> tuple[Schedule, Timeline]:
    """``name`` with the times of a whole sequence on a whole rank shared evenly."""
    make = SCHEDULES[name]
    schedule = make(num_ranks, (num_slices,) * num_sequences, num_chunks=num_chunks)
    forward, backward, weight = (Fraction(time) / (num_slices * num_chunks) for time in times)
    cost = {"F": forward, "B": backward, "W": weight, "BW": backward + weight}
    return schedule, simulate(schedule, lambda action: cost[action.kind.value])


def kept(program: Iterable[Action], until: tuple[Kind, ...]) -> int:
    """The most slices that are between their forward and an action of the kinds ``until``."""
    now = most = 0
    for action in program:
        now += (action.kind is Kind.FORWARD) - (action.kind in until)
        most = max(most, now)
    return most


def activations(schedule: Schedule) -> list[int]:
    until = (Kind.BACKWARD, Kind.FULL_BACKWARD)
    return [kept(program, until) for program in schedule.programs]


@pytest.mark.parametrize("name", ["gpipe", "one_f_one_b"])
def test_sequence_level(name: str) -> None:
    for ranks, sequences, times in itertools.product(RANKS, (1, 2, 5, 9), TIMES):
        schedule, time = timed(name, ranks, 1, sequences, times, 1)
        assert {time.idle(rank) for rank in range(ranks)} == {(ranks - 1) * sum(times)}
        assert time.bubble == Fraction(ranks - 1, sequences + ranks - 1)
        most = [sequences if name == "gpipe" else min(ranks - r, sequences) for r in range(ranks)]
        assert activations(schedule) == most


@pytest.mark.parametrize("name", ["terapipe", "seq1f1b"])
def test_token_level(name: str) -> None:
    for ranks, slices, sequences in itertools.product(RANKS, (1, 2, 3, 8), (1, 2, 5)):
        for times in TIMES[1:3]:
            schedule, time = timed(name, ranks, slices, sequences, times, 1)
            every = sequences * slices
            assert {time.idle(r) for r in range(ranks)} == {(ranks - 1) * sum(times) / slices}
            assert time.bubble == Fraction(ranks - 1, every + ranks - 1)
            ahead = [min(slices + ranks - 1 - rank, every) for rank in range(ranks)]
            assert activations(schedule) == (ahead if name == "seq1f1b" else [every] * ranks)


def test_terapipe_of_unequal_slices() -> None:
    forward, backward = (5, 3, 4, 1), (7, 9, 2, 6)
    cost = {Kind.FORWARD: forward, Kind.FULL_BACKWARD: backward}
    for ranks, sequences in itertools.product(RANKS, (1, 3)):
        schedule = SCHEDULES["terapipe"](ranks, (4,) * sequences)
        time = simulate(schedule, lambda action: cost[action.kind][action.slice])
        most = max(forward) + max(backward)
        assert time.makespan == sequences * sum(forward + backward) + (ranks - 1) * most


@pytest.mark.parametrize("name", ["interleaved", "looped_bfs", "slimpipe", "seq1f1b_interleaved"])
def test_several_chunks(name: str) -> None:
    for ranks, chunks, rounds in itertools.product((1, 2, 3, 4), (1, 2, 3), (1, 2, 3)):
        for slices in (1,) if name in ("interleaved", "looped_bfs") else (1, 2, ranks, 2 * ranks):
            if name == "slimpipe" and slices % ranks:
                continue
            a_round = 1 if name == "slimpipe" else -(-ranks // slices)
            sequences, size = a_round * rounds, a_round * slices
            schedule, time = timed(name, ranks, slices, sequences, TIMES[1], chunks)
            every = sequences * slices * chunks
            idle = Fraction((ranks - 1) * sum(TIMES[1]), slices * chunks)
            assert {time.idle(rank) for rank in range(ranks)} == {idle}, (ranks, chunks, slices)
            assert time.bubble == Fraction(ranks - 1, every + ranks - 1)
            steps = 2 if chunks > 1 else 1
            most = (chunks - 1) * size + steps * (ranks - 1) + slices
            if name == "looped_bfs":
                most = every
            assert max(activations(schedule)) == activations(schedule)[0] == min(most, every)


@pytest.mark.parametrize("name", ["zb_h1", "token_zero_bubble"])
def test_zero_bubble_at_the_memory_of_1f1b(name: str) -> None:
    for ranks, times, slices in itertools.product((1, 2, 4, 6), TIMES[:3], (1, 4)):
        if name == "zb_h1" and slices > 1:
            continue
        forward, backward, weight = times
        for sequences in (ranks, 2 * ranks + 1):
            schedule, time = timed(name, ranks, slices, sequences, times, 1)
            idle = Fraction((ranks - 1) * (forward + backward - weight)) / slices
            assert {time.idle(rank) for rank in range(ranks)} == {idle}
            most = [kept(program, (Kind.WEIGHT,)) for program in schedule.programs]
            assert max(most) == slices + ranks - 1


def test_zero_bubble_at_twice_the_memory() -> None:
    for ranks, times in itertools.product(RANKS, TIMES):
        forward, backward, weight = times
        if 2 * weight > forward + backward:
            continue
        for sequences in (2 * ranks - 1, 3 * ranks):
            schedule, time = timed("zb_h2", ranks, 1, sequences, times, 1)
            stalled = (ranks - 1) * (forward + backward - 2 * weight)
            assert max(time.stalled(rank) for rank in range(ranks)) == stalled
            assert max(kept(p, (Kind.WEIGHT,)) for p in schedule.programs) == 2 * ranks - 1


def test_zero_bubble_on_a_v() -> None:
    for ranks in RANKS:
        for sequences in (2 * ranks - 1, 2 * ranks, 3 * ranks + 1):
            schedule, time = timed("zb_v", ranks, 1, sequences, (1, 1, 1), 2)
            assert {time.stalled(rank) for rank in range(ranks)} == {0}
            assert activations(schedule) == [2 * ranks] * ranks
