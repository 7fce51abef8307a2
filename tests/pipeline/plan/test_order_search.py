"""Searched orders: valid, timed and weighed as the simulator does, never worse than the strict."""

from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import check_schedule
from blocks.pipeline.plan.bound import order_bound
from blocks.pipeline.plan.order_search import search_order
from blocks.pipeline.plan.starts import serial_peak
from tests.pipeline.plan.brute_force import best_makespan
from tests.pipeline.plan.draws import Shape, makespan_of, peaks_of, schedule_of, shapes

EFFORT = 4000


@given(shapes(), st.integers(1, 5), st.floats(0, 2))
def test_orders_are_valid_and_take_what_the_simulator_says(
    shape: Shape, num_sequences: int, more: float
) -> None:
    costs = shape.costs()
    cap = serial_peak(costs, num_sequences) * (1 + more)
    order = search_order(costs, num_sequences, cap, effort=EFFORT)
    assert order is not None, "the cap holds the order of least memory"
    schedule = schedule_of(costs, num_sequences, order)
    check_schedule(schedule, canonical=True)
    assert order.makespan_s == makespan_of(costs, schedule)
    assert order.peak_bytes == peaks_of(costs, schedule)
    assert max(order.peak_bytes) <= cap * (1 + 1e-9)
    assert order_bound(costs, num_sequences, cap) <= order.makespan_s * (1 + 1e-12)


@given(shapes(max_ranks=3, max_slices=2, max_chunks=1, splits=False), st.floats(0, 1))
def test_bound_below_and_search_near_the_best_of_all_orders(shape: Shape, more: float) -> None:
    costs = shape.costs()
    cap = serial_peak(costs, 2) * (1 + more)
    best = best_makespan(costs, 2, cap)
    order = search_order(costs, 2, cap)
    assert order is not None
    assert order_bound(costs, 2, cap) <= best * (1 + 1e-12)
    assert best <= order.makespan_s <= 1.01 * best
