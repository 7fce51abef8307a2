"""Cutting batch and tokens together against brute force."""

import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import BatchSlicing, CostSurface, SliceTime, slice_batch, slice_tokens

CELL = 8


def every_bounds(num_cells: int):
    for count in range(num_cells):
        for inner in itertools.combinations(range(1, num_cells), count):
            yield tuple(CELL * x for x in (0, *inner, num_cells))


def partitions(rows: int, largest: int):
    """Every multiset of positive sizes that adds up to ``rows``."""
    if rows == 0:
        yield ()
    for size in range(min(rows, largest), 0, -1):
        for rest in partitions(rows - size, size):
            yield (size, *rest)


@st.composite
def problems(draw: st.DrawFn):
    num_cells, num_rows = draw(st.sampled_from([(1, 5), (2, 5), (3, 4), (4, 3), (5, 2), (6, 1)]))
    rng = random.Random(draw(st.integers(0, 2**32)))
    highest = draw(st.sampled_from([2, 30, 10**6]))
    prices = {
        (CELL * (j - i), CELL * i, rows): rng.randint(0, highest)
        for i in range(num_cells)
        for j in range(i + 1, num_cells + 1)
        for rows in range(1, num_rows + 1)
    }
    return num_cells, num_rows, lambda length, start, rows: prices[length, start, rows]


@given(problems(), st.integers(1, 9))
def test_equals_brute_force(problem, num_stages):
    """Over every multiset of groups, and every cut of each group apart."""
    num_cells, num_rows, cost = problem
    priced = {
        rows: [
            (sum(parts), max(parts))
            for bounds in every_bounds(num_cells)
            for parts in [[cost(b - a, a, rows) for a, b in itertools.pairwise(bounds)]]
        ]
        for rows in range(1, num_rows + 1)
    }
    best = min(
        sum(total for total, _ in cuts) + (num_stages - 1) * max(largest for _, largest in cuts)
        for sizes in partitions(num_rows, num_rows)
        for cuts in itertools.product(*(sorted(set(priced[size])) for size in sizes))
    )
    found = slice_batch(cost, CELL * num_cells, num_rows, num_stages, epsilon=0)
    assert found.total_s == best
    assert found.lower_bound_s == pytest.approx(best)
    assert sum(group.num_rows for group in found.groups) == num_rows
    for group in found.groups:
        pairs = itertools.pairwise(group.bounds)
        assert list(group.costs_s) == [cost(b - a, a, group.num_rows) for a, b in pairs]


@given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 12))
def test_single_rows_are_cut_as_so_many_sequences(num_cells, num_rows, num_stages):
    time = SliceTime(fixed=5, per_token=2, per_pair=1, per_square=1)
    found = slice_batch(time, CELL * num_cells, num_rows, num_stages, sizes=[1], epsilon=0)
    alone = slice_tokens(time, CELL * num_cells, num_stages, num_sequences=num_rows, epsilon=0)
    assert found.total_s == alone.total_s
    assert len(found.groups) == num_rows


def test_rows_go_together_while_a_chip_is_idle():
    """Up to 64 tokens cost the same: four rows of 16 in one slice are free."""
    time = CostSurface(SliceTime(per_floor=1, floor=64), SliceTime(), SliceTime())
    found = slice_batch(time, 16, 8, 2, granularity=16, epsilon=0)
    assert [(group.num_rows, group.bounds) for group in found.groups] == [(4, (0, 16))] * 2


def test_cut_batches_travel_as_json():
    found = slice_batch(SliceTime(fixed=1, per_token=1), 32, 3, 4)
    assert BatchSlicing.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_sizes_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match="sizes: expected groups that add up to 3 rows"):
        slice_batch(SliceTime(per_token=1), 16, 3, 2, sizes=[2])
