"""1F1B that runs ahead of its messages: what it keeps, and what it takes, against 1F1B."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.pipeline import Action, Kind, MemorySizes, Schedule, peak_bytes, simulate
from blocks.pipeline.schedules import eager_1f1b, one_f_one_b, seq1f1b
from tests.pipeline.families import prove_one

Hops = list[tuple[int, int]]
"""Time of a message to the next rank, and of one back, by boundary."""

RANKS, SEQUENCES = st.integers(1, 7), st.integers(1, 24)
TIME = st.integers(1, 12)


def makespan(schedule: Schedule, forward: list[int], backward: list[int], hops: Hops) -> Fraction:
    """Of stages with these times."""

    def duration(action: Action) -> int:
        return (forward if action.kind is Kind.FORWARD else backward)[action.stage]

    def transfer(receive: Action) -> int:
        there = receive.kind is Kind.RECEIVE_FORWARD
        return hops[receive.peer][0] if there else hops[receive.stage][1]

    return Fraction(simulate(schedule, duration, transfer=transfer).makespan)


def alike(schedule: Schedule, forward: int, backward: int, hops: Hops) -> Fraction:
    """The makespan where all ranks are as fast."""
    return makespan(schedule, [forward] * 8, [backward] * 8, hops)


@given(RANKS, st.lists(st.integers(1, 4), min_size=1, max_size=20))
def test_keeps_what_it_says(ranks: int, num_slices: list[int]) -> None:
    """Proved with its messages; the sequences in flight at every rank, whatever they are cut to."""
    schedule = eager_1f1b(ranks, num_slices)
    prove_one(schedule)
    share = MemorySizes(activations=lambda stage, n, start: Fraction(1))
    found = peak_bytes(eager_1f1b(ranks, (1,) * len(num_slices)), share)
    assert found == tuple(min(2 * (ranks - p) - 1, len(num_slices)) for p in range(ranks))
    most = [
        max(sum(num_slices[s : s + 2 * (ranks - p) - 1]) for s in range(len(num_slices)))
        for p in range(ranks)
    ]
    assert all(kept <= limit for kept, limit in zip(peak_bytes(schedule, share), most, strict=True))


def test_one_slice_is_seq1f1b_two_ahead() -> None:
    for ranks in range(1, 6):
        for count in (1, 2, 5, 12):
            sliced = seq1f1b(ranks, (1,) * count, reach=2)
            assert eager_1f1b(ranks, (1,) * count).programs == sliced.programs


@settings(max_examples=100, deadline=None)
@given(st.data(), RANKS, SEQUENCES, TIME, TIME)
def test_never_slower_where_ranks_are_alike(data, ranks, count, forward, backward) -> None:
    """Every boundary has messages of its own, of any time."""
    hop = st.tuples(st.integers(0, 40), st.integers(0, 40))
    hops = data.draw(st.lists(hop, min_size=ranks - 1, max_size=ranks - 1))
    schedules = eager_1f1b(ranks, (1,) * count), one_f_one_b(ranks, (1,) * count)
    eager, plain = (alike(schedule, forward, backward, hops) for schedule in schedules)
    assert eager <= plain
    free = [(0, 0)] * (ranks - 1)
    eager, plain = (alike(schedule, forward, backward, free) for schedule in schedules)
    assert eager == plain == (ranks - 1 + count) * (forward + backward)


@settings(max_examples=100, deadline=None)
@given(st.data(), RANKS, SEQUENCES, TIME, TIME)
def test_messages_of_a_turn_are_hidden(data, ranks, count, forward, backward) -> None:
    """There and back in F+BW: nothing but the first sequence's way waits for messages."""
    turn = forward + backward
    hop = st.integers(0, turn).flatmap(lambda there: st.tuples(st.just(there), _up_to(turn, there)))
    hops = data.draw(st.lists(hop, min_size=ranks - 1, max_size=ranks - 1))
    found = alike(eager_1f1b(ranks, (1,) * count), forward, backward, hops)
    assert found == (ranks - 1 + count) * turn + sum(map(sum, hops))


def _up_to(turn: int, there: int) -> st.SearchStrategy[int]:
    return st.integers(0, turn - there)


@pytest.mark.parametrize("message", [1, 2, 3, 4])
def test_1f1b_waits_for_messages_in_every_turn(message: int) -> None:
    """8 ranks, F = 3, BW = 6: 40 sequences more take 1F1B 9 + 2c 7/8 each, and 9 if it is eager."""
    hops = [(message, message)] * 7
    times = {}
    for make in (one_f_one_b, eager_1f1b):
        short, long = (alike(make(8, (1,) * count), 3, 6, hops) for count in (40, 80))
        times[make] = (long - short) / 40
    assert times[one_f_one_b] == 9 + Fraction(14 * message, 8)
    assert times[eager_1f1b] == 9


def test_either_may_be_faster_where_ranks_are_not_alike() -> None:
    """No message takes time. Forwards that come early fill the first round trip of a slow rank, or
    keep the first backward from a slow one."""
    free = [(0, 0)] * 7
    both = [make(8, (1,) * 32) for make in (eager_1f1b, one_f_one_b)]
    eager, plain = (makespan(s, [1, 1, 2, *[1] * 5], [2] * 8, free) for s in both)
    assert eager < plain == 25 + 4 * (31 - 6) + 19, "test_trip_bound has why"
    both = [make(3, (1,) * 5) for make in (eager_1f1b, one_f_one_b)]
    eager, plain = (makespan(s, [1, 10, 1], [100, 1, 1], free) for s in both)
    assert plain == 1 + 10 + 10 + 1 + 1 + 1 + 500
    assert eager > plain
