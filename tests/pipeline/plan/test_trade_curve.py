"""What memory buys at the setting of the README: the claims, and what they are compared with."""

import pytest

from benches.greedy_order import greedy_order
from benches.trade_curve import (
    CUTS,
    NUM_SEQUENCES,
    NUM_SLICES,
    SEQ_LEN,
    Point,
    greedy,
    plan_under,
    plot,
    published,
    searched,
)
from blocks.pipeline import check_schedule, lower

UNIFORM, EQUAL = CUTS["uniform slices"], CUTS["equal-cost slices"]


def test_equal_cost_slices_within_1_7() -> None:
    found = searched(1.7, EQUAL)
    assert found.bubble <= 0.015
    assert found.peak <= 1.7
    assert found.bound <= found.bubble


def test_uniform_slices_within_2_where_the_greedy_order_needs_3_44() -> None:
    found = searched(2.0, UNIFORM)
    assert found.bubble <= 0.025
    assert found.peak <= 2.0
    assert greedy(2.0).bubble > 0.15
    assert greedy(3.4375).bubble <= 0.02


@pytest.mark.parametrize(
    ("cap", "cuts"),
    [
        (1.0, UNIFORM),
        (1.25, UNIFORM),
        (1.4375, UNIFORM),
        (1.5625, UNIFORM),
        (2.25, UNIFORM),
        (1.25, EQUAL),
        (1.4375, EQUAL),
        (1.75, EQUAL),
    ],
)
def test_orders_meet_the_bound(cap: float, cuts: tuple[str, ...]) -> None:
    found = searched(cap, cuts)
    assert found.bubble == pytest.approx(found.bound, abs=1e-3)


def test_never_worse_than_the_published_order_in_its_memory() -> None:
    strict = published("seq1f1b", NUM_SLICES)
    assert strict.bubble == pytest.approx(0.253, abs=5e-4)
    assert searched(strict.peak, UNIFORM).bubble <= strict.bubble + 1e-12


def test_the_planned_schedule_can_be_launched() -> None:
    plan = plan_under(1.7, EQUAL)
    check_schedule(lower(plan.schedule), canonical=True)
    assert plan.bounds[0] == 0
    assert plan.bounds[-1] == SEQ_LEN
    assert plan.schedule.num_slices == (NUM_SLICES,) * NUM_SEQUENCES


def test_greedy_order_is_a_schedule() -> None:
    check_schedule(lower(greedy_order(3, 4, [1.0, 2.0], [2.0, 4.0], 3)), canonical=True)


def test_curves_are_drawn(tmp_path) -> None:
    points = {name: [Point(1.0, 1.0, 0.4, 0.4), Point(2.0, 1.9, 0.02, 0.01)] for name in CUTS}
    beside = Point(1.4, 1.4, 0.25)
    plot(points, [beside] * 2, beside, beside, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
