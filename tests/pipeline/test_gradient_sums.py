"""Sums of gradients: one order of additions, whatever order contributions come in."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blocks.pipeline.gradient_sums import GradientSums, tree_sum, turns


def drawn(rng: random.Random) -> tuple[list[int], list[Tensor | None]]:
    """Lanes and contributions, some of them none; magnitudes differ so that order shows."""
    num_lanes = rng.randint(1, 9)
    lanes = sorted(rng.sample(range(20), num_lanes))
    of_turn = [lane for lane in lanes for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.5:
        rng.shuffle(of_turn)
    parts = [
        None if rng.random() < 0.3 else torch.randn(3) * 10.0 ** rng.randint(-4, 4) for _ in of_turn
    ]
    return of_turn, parts


def tree(parts: list[Tensor | None]) -> Tensor | None:
    """The definition: neighbours are added, level by level; none adds nothing."""
    while len(parts) > 1:
        pairs = [
            b if a is None else a if b is None else a + b
            for a, b in zip(parts[::2], parts[1::2], strict=False)
        ]
        parts = pairs + parts[2 * len(pairs) :]
    return parts[0]


@given(st.integers(0, 2**32))
def test_any_arrival_gives_the_bits_of_the_definition(seed: int) -> None:
    rng = random.Random(seed)
    of_turn, parts = drawn(rng)
    before = [None if part is None else part.clone() for part in parts]
    by_lane: dict[int, Tensor | None] = dict.fromkeys(sorted(set(of_turn)))
    for lane, part in zip(of_turn, parts, strict=True):
        sofar = by_lane[lane]
        if part is not None:
            by_lane[lane] = part if sofar is None else sofar + part
    expected = tree(list(by_lane.values()))
    sums, kept = GradientSums(of_turn), GradientSums(of_turn, keep_lanes=True)
    for turn in rng.sample(range(len(of_turn)), len(of_turn)):
        for found in (sums, kept):
            found.add(turn, parts[turn])
            found.check_invariants()
    total = sums.total()
    assert (total is None) == (expected is None)
    assert total is None or expected is None or torch.equal(total, expected)
    lanes = {lane: part for lane, part in by_lane.items() if part is not None}
    found = kept.by_lane()
    assert found.keys() == lanes.keys()
    assert all(torch.equal(found[lane], lanes[lane]) for lane in lanes)
    for part, copy in zip(parts, before, strict=True):
        assert part is None or copy is None or torch.equal(part, copy), "a contribution was changed"
        assert part is None or total is None or part.data_ptr() != total.data_ptr()


@given(st.integers(1, 20))
def test_tree_sum_is_the_definition(count: int) -> None:
    parts = [torch.randn(2) * 10.0**i for i in range(count)]
    expected = tree(list(parts))
    assert expected is not None
    assert torch.equal(tree_sum(parts), expected)


def test_few_sums_are_held() -> None:
    sums = GradientSums([lane for lane in range(64) for _ in range(2)])
    for turn in range(128):
        sums.add(turn, torch.ones(1))
        assert len(sums._sums) + len(sums._tree) <= 7
    assert sums.total() == 128


def test_a_turn_that_never_comes_is_named() -> None:
    sums = GradientSums([0, 0])
    sums.add(1, torch.ones(1))
    with pytest.raises(AssertionError, match="turn 0 of 2 has not come"):
        sums.total()


def test_turns_go_back_in_a_sequence_and_on_from_one_to_the_next() -> None:
    assert list(turns([3, 1, 2])) == [(0, 2), (0, 1), (0, 0), (1, 0), (2, 1), (2, 0)]
