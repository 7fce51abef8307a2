"""The slice program against brute force, and the properties of its answers."""

import dataclasses
import itertools
import json
import random
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import (
    CostSurface,
    SliceTime,
    Slicing,
    equal_cost_slices,
    equal_flop_slices,
    slice_tokens,
    uniform_slices,
    unit_cost,
)
from tests.pipeline.brute_force import (
    CELL,
    Problem,
    best_slicing,
    costs,
    every_bounds,
    makespan,
    random_problem,
)


@st.composite
def problems(draw: st.DrawFn, cells: int = 7, forbidden: bool = True) -> Problem:
    rng = random.Random(draw(st.integers(0, 2**32)))
    rate = draw(st.sampled_from([0, 0, 0.3])) if forbidden else 0
    return random_problem(rng, draw(st.integers(1, cells)), rate=rate)


coefficient = st.one_of(st.just(0), st.integers(1, 1000))
surfaces = st.builds(
    SliceTime,
    fixed=coefficient,
    per_token=st.integers(1, 1000),
    per_floor=coefficient,
    floor=st.sampled_from([0, 12, 32]),
    per_prefix=coefficient,
    per_pair=coefficient,
    per_square=coefficient,
)


@given(problems(), st.integers(1, 9), st.integers(1, 4))
def test_equals_brute_force_for_any_costs(problem, num_stages, num_sequences):
    num_cells, cost = problem.num_cells, problem.cost
    found = slice_tokens(cost, CELL * num_cells, num_stages, num_sequences=num_sequences, epsilon=0)
    best = best_slicing(problem, num_stages, num_sequences)
    assert found.total_s == makespan(cost, found.bounds, num_stages, num_sequences) == best
    assert found.lower_bound_s == pytest.approx(best, rel=1e-12)


@given(problems(), st.integers(1, 9), st.data())
def test_equals_brute_force_for_a_given_number_of_slices(problem, num_stages, data):
    num_cells, cost = problem.num_cells, problem.cost
    count = data.draw(st.integers(1, num_cells))
    of_count = [b for b in every_bounds(num_cells) if len(b) == count + 1]
    best = min(makespan(cost, b, num_stages) for b in of_count)
    if best == float("inf"):
        with pytest.raises(ValueError, match="some slicing"):
            slice_tokens(cost, CELL * num_cells, num_stages, num_slices=count, epsilon=0)
        return
    found = slice_tokens(cost, CELL * num_cells, num_stages, num_slices=count, epsilon=0)
    assert found.num_slices == count
    assert found.total_s == best


@given(problems(), st.integers(1, 9), st.integers(0, 10**5))
def test_epsilon_costs_at_most_that_much_per_stage(problem, num_stages, epsilon):
    num_cells, cost = problem.num_cells, problem.cost
    seq_len = CELL * num_cells
    exact = slice_tokens(cost, seq_len, num_stages, epsilon=0)
    found = slice_tokens(cost, seq_len, num_stages, epsilon=float(epsilon))
    assert exact.total_s <= found.total_s <= exact.total_s + num_stages * epsilon
    assert found.lower_bound_s <= exact.total_s


def ascending(cost: Callable, num_cells: int, num_stages: int) -> float:
    """TeraPipe's Algorithm 1 word for word: caps ascending, exact early stop."""
    cells = range(num_cells + 1)
    price = {(i, j): cost(CELL * (j - i), CELL * i) for i in cells for j in cells if i < j}
    best = float("inf")
    for cap in sorted(set(price.values())):
        if cap * num_stages >= best:
            break
        sums = [0.0] + [float("inf")] * num_cells
        for j in cells[1:]:
            sums[j] = min(
                (sums[i] + price[i, j] for i in range(j) if price[i, j] <= cap),
                default=float("inf"),
            )
        best = min(best, sums[-1] + (num_stages - 1) * cap)
    return best


@given(problems(cells=24, forbidden=False), st.integers(1, 20))
def test_equals_the_ascending_enumeration(problem, num_stages):
    num_cells, cost = problem.num_cells, problem.cost
    found = slice_tokens(cost, CELL * num_cells, num_stages, epsilon=0)
    assert found.total_s == ascending(cost, num_cells, num_stages)


@given(surfaces, st.integers(1, 200), st.integers(1, 16), st.integers(1, 4))
def test_never_worse_than_a_uniform_slicing(time, seq_len, num_stages, num_sequences):
    found = slice_tokens(
        time, seq_len, num_stages, num_sequences=num_sequences, granularity=4, epsilon=0
    )
    for count in range(1, -(-seq_len // 4) + 1):
        bounds = uniform_slices(seq_len, count, granularity=4)
        assert found.total_s <= makespan(time, bounds, num_stages, num_sequences)


@given(surfaces, st.integers(1, 300), st.integers(1, 16), st.sampled_from([1, 3, 16]))
def test_refined_answers_are_never_worse_than_a_uniform_slicing(time, seq_len, stages, max_cells):
    cost = CostSurface(time, SliceTime(), SliceTime())
    found = slice_tokens(cost, seq_len, stages, granularity=2, max_cells=max_cells, epsilon=0)
    assert sum(found.lengths) == seq_len
    assert all(bound % 2 == 0 for bound in found.bounds[:-1])
    for count in range(1, min(max_cells, -(-seq_len // 2)) + 1):
        bounds = uniform_slices(seq_len, count, granularity=2)
        assert found.total_s <= makespan(cost, bounds, stages) * (1 + 1e-12)


@given(surfaces, st.integers(1, 10), st.integers(1, 16))
def test_without_a_prefix_term_some_best_slicing_never_grows(time, num_cells, num_stages):
    """Swapping a short slice with a longer one after it changes no sum and raises no maximum."""
    time = dataclasses.replace(time, per_prefix=0)
    found = slice_tokens(time, CELL * num_cells, num_stages, epsilon=0)
    falling = [
        b
        for b in every_bounds(num_cells)
        if all(x >= y for x, y in itertools.pairwise(b[k + 1] - b[k] for k in range(len(b) - 1)))
    ]
    assert found.total_s == min(makespan(time, b, num_stages) for b in falling)


@given(problems(), st.data())
def test_equal_cost_slices_have_the_cheapest_costliest_slice(problem, data):
    num_cells, cost = problem.num_cells, problem.cost
    count = data.draw(st.integers(1, num_cells))
    best = min(max(costs(cost, b)) for b in every_bounds(num_cells) if len(b) == count + 1)
    if best == float("inf"):
        with pytest.raises(ValueError, match="some slicing"):
            equal_cost_slices(cost, CELL * num_cells, count)
        return
    bounds = equal_cost_slices(cost, CELL * num_cells, count)
    assert len(bounds) == count + 1
    assert max(costs(cost, bounds)) == best


@given(st.fractions(0, 1, max_denominator=8), st.integers(1, 16))
def test_closed_form_gives_equal_costs(alpha, num_slices):
    seq_len = 1 << 20
    bounds = equal_flop_slices(float(alpha), seq_len, num_slices)
    priced = costs(unit_cost(alpha, seq_len).forward, bounds)
    assert sum(priced) == 1
    assert max(priced) - min(priced) < Fraction(16, seq_len)


@given(st.floats(0.05, 1), st.integers(1, 12))
def test_search_finds_the_closed_form(alpha, num_slices):
    found = equal_cost_slices(unit_cost(alpha, 4096).forward, 4096, num_slices, granularity=32)
    closed = equal_flop_slices(alpha, 4096, num_slices)
    assert max(abs(a - b) for a, b in zip(found, closed, strict=True)) <= 32 * num_slices


@given(st.integers(1, 500), st.integers(1, 40), st.integers(1, 16))
def test_uniform_slices_are_as_equal_as_the_grid_allows(seq_len, num_slices, granularity):
    num_cells = -(-seq_len // granularity)
    if num_slices > num_cells:
        with pytest.raises(ValueError, match="fewer slices"):
            uniform_slices(seq_len, num_slices, granularity=granularity)
        return
    bounds = uniform_slices(seq_len, num_slices, granularity=granularity)
    lengths = [b - a for a, b in itertools.pairwise(bounds)]
    assert (bounds[0], bounds[-1], len(lengths)) == (0, seq_len, num_slices)
    assert all(bound % granularity == 0 for bound in bounds[:-1])
    assert min(lengths) > 0
    assert max(lengths) - min(lengths) <= 2 * granularity


@given(st.floats(0, 1), st.integers(1, 60), st.integers(2, 16), st.data())
def test_closed_forms_leave_no_slice_empty(alpha, seq_len, granularity, data):
    """Even where there are as many slices as cells."""
    num_cells = -(-seq_len // granularity)
    num_slices = data.draw(st.integers(max(1, num_cells - 2), num_cells))
    for bounds in (
        uniform_slices(seq_len, num_slices, granularity=granularity),
        equal_flop_slices(alpha, seq_len, num_slices, granularity=granularity),
    ):
        assert len(bounds) == num_slices + 1
        assert (bounds[0], bounds[-1]) == (0, seq_len)
        assert all(b > a for a, b in itertools.pairwise(bounds))


def test_slicings_travel_as_json():
    found = slice_tokens(unit_cost(0.5, 256), 256, 4)
    assert Slicing.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"slice from 8 to 16.*at least 0 seconds"):
        slice_tokens(lambda n, start: -1 if (n, start) == (8, 8) else 1, 32, 2)
    with pytest.raises(ValueError, match="at least 0 seconds, got nan"):
        slice_tokens(lambda n, start: float("nan"), 32, 2)
    with pytest.raises(ValueError, match="num_slices: expected 1 to 4"):
        slice_tokens(unit_cost(0.5, 32), 32, 2, num_slices=5)
    with pytest.raises(ValueError, match="seq_len: expected a positive whole number"):
        slice_tokens(unit_cost(0.5, 32), 0, 2)
