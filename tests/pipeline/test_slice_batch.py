"""Cutting batch and tokens together against brute force."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import BatchSlicing, CostSurface, SliceTime, slice_batch, slice_tokens
from tests.pipeline.brute_force import CELL, Problem, best_batch_slicing, costs, random_problem


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    num_cells, num_rows = draw(st.sampled_from([(1, 5), (2, 5), (3, 4), (4, 3), (5, 2), (6, 1)]))
    return random_problem(random.Random(draw(st.integers(0, 2**32))), num_cells, num_rows)


@given(problems(), st.integers(1, 9))
def test_equals_brute_force(problem, num_stages):
    """Over every multiset of groups, and every cut of each group apart."""
    num_cells, num_rows, cost = problem
    best = best_batch_slicing(problem, num_stages)
    found = slice_batch(cost, CELL * num_cells, num_rows, num_stages, epsilon=0)
    assert found.total_s == best
    assert found.lower_bound_s == pytest.approx(best)
    assert sum(group.num_rows for group in found.groups) == num_rows
    for group in found.groups:
        assert list(group.costs_s) == costs(cost, group.bounds, group.num_rows)


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
