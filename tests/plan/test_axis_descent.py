"""Strategies one axis at a time: each turn is the best there is, and turns end where none helps."""

import numpy as np
import pytest

from blocks.sharding import Mesh, MeshCost
from blocks.sharding.intra_op import Problem, Term, minimise, pose
from recipes.plan.axis_descent import AxisDescent
from tests.plan.graphs import mlp
from tests.plan.searching import cluster_of

PRICES = (0.0, 1e-12, 1e-9)


def posed_on(*sizes: int):
    mesh = Mesh(("x", "y")[: len(sizes)], sizes)
    return pose(mlp(2, batch=8, width=64), mesh, MeshCost(cluster_of(), mesh))


@pytest.mark.parametrize("price", PRICES)
def test_on_one_axis_labels_are_the_best_there_are(price: float):
    posed = posed_on(4)
    problem = posed.problem.priced(price)
    descent = AxisDescent(posed)
    labels, value = descent.least(problem)
    assert value == problem.value(labels) == pytest.approx(minimise(problem).seconds, rel=1e-12)
    descent.check_invariants()


@pytest.mark.parametrize("price", PRICES)
def test_on_two_axes_no_change_along_one_of_them_is_better(price: float):
    posed = posed_on(2, 2)
    problem = posed.problem.priced(price)
    descent = AxisDescent(posed)
    labels, value = descent.least(problem)
    assert value <= problem.value([0] * len(labels))
    for axis in range(2):
        least = minimise(_along(problem, posed.hints.choices, labels, axis)).seconds
        assert value == pytest.approx(least, rel=1e-4)
    descent.check_invariants()


def test_prices_met_before_leave_no_trace():
    posed = posed_on(2, 2)
    met = AxisDescent(posed)
    for price in PRICES:
        met.least(posed.problem.priced(price))
    for price in PRICES:
        problem = posed.problem.priced(price)
        assert met.least(problem) == AxisDescent(posed).least(problem)
    met.check_invariants()


def test_the_nearest_labels_have_the_choices_asked_for():
    posed = posed_on(2, 2)
    labels, _ = AxisDescent(posed).least(posed.problem.priced(0.0))
    choices = [strategy.choices for strategy in posed.strategies(labels)]
    nearest = AxisDescent(posed).nearest(choices)
    assert [strategy.choices for strategy in posed.strategies(nearest)] == choices


def _along(problem: Problem, choices, labels, axis: int) -> Problem:
    """What may change along one axis alone; copies as they like."""
    keep = []
    for v, count in enumerate(problem.num_labels):
        own = choices[v] if v < len(choices) else np.zeros((count, 0))
        others = np.delete(own, axis, axis=1) if v < len(choices) else own
        keep.append(np.flatnonzero((others == others[labels[v]]).all(axis=1)))
    seconds = tuple(s[k] for s, k in zip(problem.seconds, keep, strict=True))
    terms = tuple(
        Term(t.variables, t.seconds[np.ix_(*(keep[v] for v in t.variables))]) for t in problem.terms
    )
    return Problem(seconds, terms)
