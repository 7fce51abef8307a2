"""Families of schedules: valid at every size, one calling convention, clear refusals."""

import inspect
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import (
    SCHEDULES,
    Kind,
    MemorySizes,
    Schedule,
    defer_weights,
    lower,
    peak_bytes,
    simulate,
)
from blocks.pipeline.schedules import MANY_CHUNKS, one_f_one_b, seq1f1b, token_zero_bubble
from tests.pipeline.families import prove, prove_one
from tests.pipeline.faults import FAMILIES


def prove_apart(code: str) -> str:
    """In a process of its own, without the type checks of the test run."""
    start = "from tests.pipeline.families import SIZES, prove\n"
    run = subprocess.run([sys.executable, "-c", start + code], capture_output=True, text=True)
    return run.stdout.strip() or run.stderr


def test_small_sizes() -> None:
    assert prove((1, 3), ((1,), (1, 2))) == 4 * len(FAMILIES)


def test_up_to_16_ranks() -> None:
    code = "print(prove((1, 2, 3, 4, 5, 7)) + prove((8, 11, 16), ((1,) * 3, (2, 3, 1))))"
    assert prove_apart(code) == str(len(FAMILIES) * (6 * 8 + 3 * 2))


@pytest.mark.nightly
def test_every_number_of_ranks() -> None:
    more = "((1,) * 15, (1,) * 17, (4,) * 16, (8, 3, 5, 1), (16, 16))"
    code = f"print(prove(range(1, 17), SIZES + {more}))"
    assert prove_apart(code) == str(len(FAMILIES) * 16 * 13)


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_calling_convention(name: str) -> None:
    make = SCHEDULES[name]
    required, sizes, chunks, *more = inspect.signature(make).parameters.values()
    assert (required.name, sizes.name, chunks.name) == ("num_ranks", "num_slices", "num_chunks")
    assert chunks.default == (2 if name == "zb_v" else 1)
    assert all(p.kind is p.KEYWORD_ONLY and p.default in (None, 1) for p in more)
    made = make(2, [1, 2])
    assert made.name == name
    assert made.num_slices == (1, 2)
    assert Schedule.from_json(made.to_json()) == made


@pytest.mark.parametrize("name", SCHEDULES)
def test_sizes_that_are_none_are_refused(name: str) -> None:
    make = SCHEDULES[name]
    with pytest.raises(ValueError, match="num_ranks: expected a positive whole number, got 0"):
        make(0, (1,))
    with pytest.raises(ValueError, match="num_slices: expected one entry for every sequence"):
        make(2, ())
    with pytest.raises(ValueError, match="num_slices: expected a positive whole number, got 0"):
        make(2, (1, 0))
    with pytest.raises(ValueError, match="num_chunks"):
        make(2, (1,), num_chunks=0)
    if name not in MANY_CHUNKS:
        with pytest.raises(ValueError, match=f"num_chunks of {name}: expected [12], got 3"):
            make(2, (1,), num_chunks=3)


def test_one_chunk_is_the_plain_family() -> None:
    for plain, several in (
        ("gpipe", "looped_bfs"),
        ("gpipe", "terapipe"),
        ("one_f_one_b", "interleaved"),
        ("seq1f1b", "seq1f1b_interleaved"),
        ("seq1f1b", "slimpipe"),
    ):
        for sizes in ((1,) * 5, (3, 3)):
            one, other = SCHEDULES[plain](3, sizes), SCHEDULES[several](3, sizes)
            assert one.programs == other.programs, (plain, several)


def test_one_slice_is_the_family_over_sequences() -> None:
    for whole, sliced in (
        ("one_f_one_b", "seq1f1b"),
        ("gpipe", "terapipe"),
        ("interleaved", "seq1f1b_interleaved"),
    ):
        options = {"num_chunks": 2} if whole == "interleaved" else {}
        one = SCHEDULES[whole](3, (1,) * 6, **options)
        assert one.programs == SCHEDULES[sliced](3, (1,) * 6, **options).programs


@given(st.integers(1, 6), st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_unequal_sequences_keep_what_equal_ones_do(num_ranks: int, num_slices: list[int]) -> None:
    """At most as many slices as sequences that are all as long as the longest."""
    schedule = SCHEDULES["seq1f1b"](num_ranks, num_slices)
    prove_one(schedule)
    one = MemorySizes(activations=lambda stage, n, start: 1)
    assert max(peak_bytes(schedule, one)) <= max(num_slices) + num_ranks - 1


@pytest.mark.parametrize(
    "num_slices",
    [
        (3, 8, 1, 2, 2, 2, 1, 3, 1, 1, 1, 1),
        (8, 1, 3, 2, 3, 1, 2, 3, 3, 1, 2, 2),
        (2, 8, 1, 8, 3, 2, 8, 8, 3, 8, 3, 1),
    ],
)
def test_unequal_sequences_take_little_longer_than_equal_ones(num_slices: tuple[int, ...]) -> None:
    schedule = SCHEDULES["seq1f1b"](8, num_slices)
    time = simulate(schedule, lambda action: 1 if action.kind is Kind.FORWARD else 2)
    equal = 3 * (sum(num_slices) + 7)
    assert equal <= time.makespan <= 1.11 * equal


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_reach_costs_memory_and_leaves_equal_slices_as_they_are(reach: int) -> None:
    ranks, slices, sequences = 4, 5, 6
    schedule = seq1f1b(ranks, (slices,) * sequences, reach=reach)
    prove_one(schedule)
    one = MemorySizes(activations=lambda stage, n, start: 1)
    behind = range(ranks - 1, -1, -1)
    assert peak_bytes(schedule, one) == tuple(slices + reach * b for b in behind)
    time = simulate(schedule, lambda action: 1 if action.kind is Kind.FORWARD else 2)
    assert {time.idle(rank) for rank in range(ranks)} == {3 * (ranks - 1)}


def test_reach_evens_out_unequal_slices() -> None:
    def bubble(reach: int) -> float:
        schedule = seq1f1b(8, (16,) * 16, reach=reach)
        cost = {Kind.FORWARD: 20, Kind.FULL_BACKWARD: 40}
        return float(simulate(schedule, lambda a: cost[a.kind] * (1 + a.slice)).bubble)

    found = [bubble(reach) for reach in (1, 2, 3)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 3 * found[2]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="reach: expected a positive whole number, got 0"):
        seq1f1b(4, (2, 2), reach=0)
    with pytest.raises(ValueError, match=r"max_kept: expected at least M\+P-1 = 5 slices, got 4"):
        token_zero_bubble(4, (2, 2), max_kept=4)


def test_weight_gradients_of_any_order_can_be_deferred() -> None:
    for name, num_chunks in FAMILIES:
        order = SCHEDULES[name](3, (2, 1, 2), num_chunks=num_chunks)
        if "z" not in name:
            prove_one(defer_weights(order, lambda action: 1 + action.slice, 100))
    tight = defer_weights(one_f_one_b(3, (1,) * 6), lambda action: 1, 0)
    prove_one(tight)


def test_what_is_split_already_is_not_deferred() -> None:
    with pytest.raises(ValueError, match="expected forwards and full backwards alone, got B0"):
        defer_weights(SCHEDULES["zb_h1"](1, (1,)), lambda action: 1, 1)
    with pytest.raises(ValueError, match="expected forwards and full backwards alone, got SF0"):
        defer_weights(lower(one_f_one_b(2, (1,))), lambda action: 1, 1)
