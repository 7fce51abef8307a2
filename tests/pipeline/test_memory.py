"""What is held when: against closed forms, and against a rank that holds and lets go."""

import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import (
    SCHEDULES,
    Action,
    Held,
    Kind,
    MemorySizes,
    Schedule,
    lifetimes,
    live_bytes,
    lower,
    peak_bytes,
)
from tests.pipeline.random_programs import random_schedule

SEEDS = st.integers(0, 2**32)


def a_token(stage: int, num_tokens: int, start: int) -> int:
    return num_tokens


def program(*texts: str) -> tuple[Action, ...]:
    return tuple(Action.parse(text, 0) for text in texts)


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("num_slices", [1, 3, 8])
def test_closed_forms(num_ranks: int, num_slices: int) -> None:
    """A sequence at a stage counts 1."""
    share = MemorySizes(activations=lambda stage, n, start: Fraction(n, num_slices))
    sequences = 2 * num_ranks + 1

    def peak(name: str, **options: int) -> Fraction | int | float:
        made = SCHEDULES[name](num_ranks, (num_slices,) * sequences, **options)
        return max(peak_bytes(made, share))

    assert peak("gpipe") == peak("terapipe") == sequences
    assert peak("seq1f1b") == Fraction(num_slices + num_ranks - 1, num_slices)
    assert peak("token_zero_bubble") <= Fraction(num_slices + num_ranks - 1, num_slices)
    assert peak("one_f_one_b") == num_ranks
    assert peak("zb_h1") == num_ranks
    assert peak("zb_v") == 2 * num_ranks
    if num_slices % num_ranks == 0:
        chunks = 3
        most = 1 + Fraction(2 * (num_ranks - 1), chunks * num_slices)
        assert peak("slimpipe", num_chunks=chunks) == most * chunks


def test_an_interleaved_rank_holds_what_the_paper_says() -> None:
    ranks, chunks = 4, 3
    made = SCHEDULES["interleaved"](ranks, (1,) * 12, num_chunks=chunks)
    share = MemorySizes(activations=lambda stage, n, start: Fraction(1, chunks))
    assert peak_bytes(made, share)[0] == ranks * (1 + Fraction(ranks - 1, ranks * chunks))


def test_weight_inputs_of_zero_bubble_stay_within_its_bound() -> None:
    ranks, both = 4, MemorySizes(activations=a_token, weight_inputs=a_token)
    assert max(peak_bytes(SCHEDULES["zb_h1"](ranks, (1,) * 9), both)) == ranks + 1
    """During a backward its activations and what it puts aside are both there."""


def test_keys_and_values_and_their_gradients() -> None:
    texts = ("F0(0,0)", "F0(0,1)", "BW0(0,1)", "F0(1,0)", "BW0(0,0)", "BW0(1,0)")
    schedule = Schedule("one", (0,), (2, 1), (program(*texts),))
    bounds = ((0, 10, 15), (0, 4))
    keys = MemorySizes(keys_values=a_token)
    assert live_bytes(schedule, keys, bounds) == ((10, 15, 15, 14, 14, 4),)
    sums = MemorySizes(accumulators=a_token)
    assert live_bytes(schedule, sums, bounds) == ((0, 0, 15, 10, 10, 4),)
    assert live_bytes(schedule, sums, bounds, whole_prefix=True) == ((15, 15, 15, 19, 19, 4),)
    assert peak_bytes(schedule, keys, bounds, whole_prefix=True) == (19,)


def test_recomputation_keeps_inputs_instead() -> None:
    texts = ("F0(0,0)", "F0(0,1)", "R0(0,1)", "BW0(0,1)", "BW0(0,0)")
    schedule = Schedule("one", (0,), (2,), (program(*texts),))
    sizes = MemorySizes(activations=lambda stage, n, start: 100, inputs=lambda stage, n, start: 1)
    assert live_bytes(schedule, sizes) == ((100, 101, 201, 201, 100),)
    assert live_bytes(schedule, sizes, recompute=[0]) == ((1, 2, 102, 102, 101),)


def test_sizes_are_asked_for_prefixes() -> None:
    asked = set()

    def size(stage: int, num_tokens: int, start: int) -> int:
        asked.add((stage, num_tokens, start))
        return 1

    schedule = SCHEDULES["terapipe"](2, (2,))
    peak_bytes(schedule, MemorySizes(activations=size), [(0, 5, 7)])
    assert asked == {(0, 5, 0), (0, 2, 5), (1, 5, 0), (1, 2, 5)}


def test_bounds_of_other_slices_are_refused() -> None:
    schedule = SCHEDULES["terapipe"](2, (2,))
    with pytest.raises(ValueError, match=r"bounds: expected slices \(2,\) .*got \(3,\)"):
        peak_bytes(schedule, MemorySizes(), [(0, 1, 2, 3)])
    with pytest.raises(ValueError, match="bounds: expected whole tokens ascending from 0"):
        peak_bytes(schedule, MemorySizes(), [(0, 2, 1)])
    with pytest.raises(ValueError, match="recompute: expected stages below 2, got 2"):
        peak_bytes(schedule, MemorySizes(), recompute=[2])


@given(SEEDS)
def test_holding_and_letting_go(seed: int) -> None:
    """A rank that walks its program with what it holds in a dictionary."""
    schedule = random_schedule(random.Random(seed))
    sizes = MemorySizes(
        activations=lambda stage, n, start: 1,
        keys_values=lambda stage, n, start: 1_000,
        accumulators=lambda stage, n, start: 1_000_000,
        weight_inputs=lambda stage, n, start: 1_000_000_000,
    )
    for rank, curve in enumerate(live_bytes(schedule, sizes)):
        program = schedule.programs[rank]
        again = {a.on(Kind.FORWARD) for a in program if a.kind is Kind.RECOMPUTE}
        split = {a.on(Kind.FORWARD) for a in program if a.kind is Kind.WEIGHT}
        held: dict[tuple[Held, Action], int] = {}
        for action, found in zip(program, curve, strict=True):
            key = action.on(Kind.FORWARD)
            if action.kind is Kind.FORWARD:
                held[Held.KEYS_VALUES, key] = 1_000
            if action.kind is (Kind.RECOMPUTE if key in again else Kind.FORWARD):
                held[Held.ACTIVATIONS, key] = 1
            if action.kind.is_backward:
                if action.slice == schedule.num_slices[action.sequence] - 1:
                    for piece in range(schedule.num_slices[action.sequence]):
                        held[Held.ACCUMULATORS, key._replace(slice=piece)] = 1_000_000
                if key in split:
                    held[Held.WEIGHT_INPUTS, key] = 1_000_000_000
            assert found == sum(held.values()), (rank, action)
            if action.kind.is_backward:
                for what in (Held.ACTIVATIONS, Held.KEYS_VALUES, Held.ACCUMULATORS):
                    del held[what, key]
            if action.kind is Kind.WEIGHT:
                del held[Held.WEIGHT_INPUTS, key]
        assert not held


@given(SEEDS)
def test_contributions_wait_for_their_turn(seed: int) -> None:
    schedule = random_schedule(random.Random(seed))
    sizes = MemorySizes(weight_gradients=lambda stage, n, start: 1)
    every = {
        stage: [(q, p) for q, n in enumerate(schedule.num_slices) for p in reversed(range(n))]
        for stage in range(schedule.num_stages)
    }
    for program, curve in zip(schedule.programs, live_bytes(schedule, sizes), strict=True):
        waiting: set[tuple[int, int, int]] = set()
        for action, found in zip(program, curve, strict=True):
            before = len(waiting)
            if action.kind in (Kind.WEIGHT, Kind.FULL_BACKWARD):
                waiting.add((action.stage, action.sequence, action.slice))
                turns = every[action.stage]
                in_turn = (action.sequence, action.slice) == turns[0]
                assert found == before + (not in_turn)
                while turns and (action.stage, *turns[0]) in waiting:
                    waiting.remove((action.stage, *turns.pop(0)))
            else:
                assert found == before
        assert not waiting


@given(SEEDS)
def test_sends_and_receives_hold_nothing_more(seed: int) -> None:
    schedule = random_schedule(random.Random(seed))
    sizes = MemorySizes(activations=lambda stage, n, start: n + stage, keys_values=a_token)
    assert peak_bytes(schedule, sizes) == peak_bytes(lower(schedule), sizes)


def test_families_make_no_contribution_wait() -> None:
    for name, make in SCHEDULES.items():
        found = lifetimes(make(3, (2, 1, 3), num_chunks=2 if name == "zb_v" else 1))
        kinds = {held.what for rank in found for held in rank}
        assert Held.WEIGHT_GRADIENTS not in kinds
        assert (Held.WEIGHT_INPUTS in kinds) == ("z" in name)
