"""The capped sum and the search for its best cap against brute force."""

import itertools
import math
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.pipeline.capped_sum import (
    Partition,
    capped_sums,
    capped_sums_of_parts,
    least_largest,
)
from blocks.pipeline.least_makespan import least_makespan
from tests.pipeline.brute_force import every_bounds


def priced(tables, bounds) -> Partition:
    parts = [float(t[i, j]) for t, (i, j) in zip(tables, itertools.pairwise(bounds), strict=True)]
    return Partition(bounds, sum(parts), max(parts))


@st.composite
def table_of(draw: st.DrawFn, num_items: int) -> np.ndarray:
    rng = random.Random(draw(st.integers(0, 2**32)))
    highest = draw(st.sampled_from([1, 4, 50]))
    trend = draw(st.sampled_from([0, 3]))  # longer parts tend to cost more, or not
    rate = draw(st.sampled_from([0, 0.4]))
    table = np.full((num_items + 1, num_items + 1), np.inf)
    for i in range(num_items):
        for j in range(i + 1, num_items + 1):
            if rng.random() >= rate:
                table[i, j] = rng.randint(0, highest) + trend * (j - i)
    return table


tables = st.integers(1, 8).flatmap(table_of)


@given(tables, st.lists(st.integers(-1, 60), min_size=1, max_size=6))
def test_equals_brute_force_under_every_cap(table, caps):
    found = capped_sums(table, caps)
    for cap, partition in zip(caps, found, strict=True):
        every = [priced([table] * (len(b) - 1), b) for b in every_bounds(len(table) - 1, 1)]
        allowed = [p.total for p in every if p.largest <= cap and p.total < math.inf]
        assert (partition is None) == (not allowed)
        if partition is not None:
            assert partition.total == min(allowed)
            assert partition == priced([table] * (len(partition.bounds) - 1), partition.bounds)
            assert partition.largest <= cap


@st.composite
def table_per_part(draw: st.DrawFn) -> list[np.ndarray]:
    num_items = draw(st.integers(1, 7))
    num_parts = draw(st.integers(1, num_items))
    made = [draw(table_of(num_items)) for _ in range(draw(st.integers(1, num_parts)))]
    return [made[min(k, len(made) - 1)] for k in range(num_parts)]


@given(table_per_part(), st.integers(-1, 60))
def test_equals_brute_force_with_a_table_per_part(parts, cap):
    of_count = [b for b in every_bounds(len(parts[0]) - 1, 1) if len(b) == len(parts) + 1]
    every = [p for p in (priced(parts, b) for b in of_count) if p.total < math.inf]
    (found,) = capped_sums_of_parts(parts, [cap])
    allowed = [p for p in every if p.largest <= cap]
    assert (found is None) == (not allowed)
    if found is not None:
        assert found == priced(parts, found.bounds)
        assert found.total == min(p.total for p in allowed)
        assert found.largest <= cap
    fastest = least_largest(parts)
    assert (fastest is None) == (not every)
    if fastest is not None:
        assert fastest == priced(parts, fastest.bounds)
        assert fastest.largest == min(p.largest for p in every)


@settings(max_examples=400)
@given(tables, st.integers(0, 12), st.sampled_from([0, 0, 3, 40]), st.sampled_from([1, 1, 2, 8]))
def test_the_best_cap_equals_brute_force(table, weight, slack, batch):
    """Whatever the batch size; and with slack, never further off than that."""
    every = [priced([table] * (len(b) - 1), b) for b in every_bounds(len(table) - 1, 1)]
    prices = [p.total + weight * p.largest for p in every if p.total < math.inf]
    found = least_makespan(
        lambda caps: capped_sums(table, caps),
        np.unique(table[np.isfinite(table)]),
        weight,
        slack=slack,
        batch=batch,
    )
    assert (found is None) == (not prices)
    if found is not None:
        choice, lower_bound = found
        assert min(prices) <= choice.total + weight * choice.largest <= min(prices) + slack
        assert lower_bound <= min(prices)
        assert lower_bound >= min(prices) - slack - 1e-9


def test_far_fewer_caps_are_tried_than_there_are():
    """The intervals left out are most of them."""
    cells = np.arange(65)
    lengths = cells[None, :] - cells[:, None]
    table = np.where(lengths > 0, 3.0 + lengths * (1 + 0.01 * cells[:, None]), np.inf)
    tried = []

    def evaluate(caps):
        tried.extend(caps)
        return capped_sums(table, caps)

    values = np.unique(table[np.isfinite(table)])
    found = least_makespan(evaluate, values, 15)
    assert found is not None
    assert found[1] == found[0].total + 15 * found[0].largest
    assert len(tried) < len(values) / 4
