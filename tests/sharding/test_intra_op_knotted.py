"""The parts that settle graphs too knotted for elimination, each against what it promises."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.sharding import Mesh
from blocks.sharding.intra_op import Posed, TableCache, minimise, pose
from blocks.sharding.intra_op.contract import contract
from blocks.sharding.intra_op.dual import Dual
from blocks.sharding.intra_op.eliminate import Cliques, elimination_order
from blocks.sharding.intra_op.settle import settle
from tests.sharding.alpha_beta import TimedBytes
from tests.sharding.small_problems import all_choices, draw
from tests.sharding.test_intra_op_plans import once
from tests.sharding.training_steps import decoder_step, experts_step


def posed_block(sizes: tuple[int, ...], beta: tuple[float, ...]) -> Posed:
    mesh = Mesh(("a", "b")[: len(sizes)], sizes)
    cost = TimedBytes(mesh, (1.0,) * len(sizes), beta)
    return pose(decoder_step(2, 128, 512, 8), mesh, cost, allowed=once(mesh))


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_dual_bounds_from_below_rises_and_leaves_costs_alone(seed):
    problem = draw(seed)
    seconds, _ = all_choices(problem)
    if np.isinf(seconds).any():
        return
    dual, labels = Dual(problem), [0] * len(problem.seconds)
    bounds = [dual.bound()]
    for _ in range(4):
        dual.sweep()
        dual.check_invariants(labels)
        bounds.append(dual.bound())
    assert all(b >= a - 1e-9 for a, b in itertools.pairwise(bounds))
    assert bounds[-1] <= seconds.min() + 1e-9
    table = seconds.reshape(problem.num_labels)
    for v, count in enumerate(problem.num_labels):
        over = dual.beyond(v)
        for label in range(count):
            assert bounds[-1] + over[label] <= np.take(table, label, axis=v).min() + 1e-9


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(0, 3))
def test_an_order_known_before_gives_the_same(seed, few):
    problem = draw(seed)
    every = list(range(len(problem.seconds)))
    least = all_choices(problem)[0].min()
    if np.isinf(least):
        return
    assert minimise(problem, order=every).seconds == pytest.approx(least, rel=1e-9)
    assert minimise(problem, order=every[few:]).seconds == pytest.approx(least, rel=1e-9)


def test_settled_choice_is_near_the_best():
    """Two axes, where the exact answer still takes no more than a large table."""
    posed = posed_block((2, 4), (1.0, 0.01))
    settled = settle(posed.problem, posed.hints, None, TableCache())
    value = posed.problem.value(settled)
    proved = minimise(posed.problem, hints=posed.hints)
    assert proved.seconds <= value <= 1.02 * proved.seconds
    again = settle(posed.problem, posed.hints, settled, TableCache())
    assert posed.problem.value(again) <= value
    rough = minimise(posed.problem, hints=posed.hints, sweeps=3, max_entries=2**10)
    assert rough.bound <= proved.seconds <= rough.seconds


def test_a_contracted_choice_is_one_of_the_whole_at_the_same_cost():
    posed = posed_block((4,), (1.0,))
    rng = np.random.default_rng(0)
    around = tuple(int(rng.integers(n)) for n in posed.problem.num_labels)
    for small in (
        contract(posed.problem, posed.hints),
        contract(posed.problem, posed.hints, around),
    ):
        assert len(small.problem.seconds) < len(posed.problem.seconds)
        for _ in range(5):
            labels = [int(rng.integers(n)) for n in small.problem.num_labels]
            whole = small.expand(labels)
            assert small.problem.value(labels) == pytest.approx(posed.problem.value(whole))
    assert small.expand(small.reduce(around)) == list(around), "the choice it is made around"


@given(st.integers(0, 10_000))
def test_cliques_foretell_the_tables(seed):
    problem = draw(seed)
    groups = [term.variables for term in problem.terms]
    _, largest = elimination_order(problem.num_labels, groups, np.inf)
    cliques = Cliques.of(problem.num_labels, groups)
    assert cliques.largest(problem.num_labels) == pytest.approx(largest)
    assert sorted(cliques.order) == list(range(len(problem.seconds)))


def test_same_plan_with_tables_made_before():
    mesh = Mesh.of(a=4)
    cost = TimedBytes(mesh, (1.0,), (1.0,))
    posed = pose(experts_step(4, 64, 8, 16, 64), mesh, cost, allowed=once(mesh))
    cache = TableCache()
    first = minimise(posed.problem, cache=cache)
    made = cache.num_tables
    assert minimise(posed.problem, cache=cache) == first
    assert cache.num_tables == made
