"""A plan's step, simulated: what goes between stages holds up those that wait for it."""

import dataclasses

from blocks.sharding import Mesh
from recipes.plan.prediction import StagePrediction
from recipes.plan.search.step_time import step_time
from recipes.plan.stage_plan import Boundary, StagePlan

UPDATE_S = 0.5
PREDICTED = StagePrediction(1.0, 2.0, UPDATE_S, 0.0, {}, 0.0, 0.0, 0.0, 0.0, 1, 0.0)
STAGES = tuple(
    StagePlan(at, at + 1, Mesh(("x",), (1,), (at,)), False, ((at, at + 1, "A"),), PREDICTED)
    for at in range(3)
)


def crossing(source: int, target: int, seconds: float) -> Boundary:
    phase = "forward" if source < target else "backward"
    return Boundary("hidden", phase, source, target, ((), ()), 0, seconds)


CHAIN = tuple(crossing(at, at + step, 0.25) for at, step in ((0, 1), (1, 1), (2, -1), (1, -1)))


def test_a_microbatch_goes_through_all_stages_and_back():
    step_s, waits = step_time(STAGES, CHAIN, "one_f_one_b", 1)
    assert step_s == 3 * (1 + 2) + 4 * 0.25 + UPDATE_S
    assert waits == 1 - (1 + 2 + UPDATE_S) / step_s


def test_what_skips_a_stage_is_waited_for():
    """It is on its way while the stage between works, and counts where it takes longer."""
    plain, _ = step_time(STAGES, CHAIN, "one_f_one_b", 1)
    way_s = 1 + 2 * 0.25  # through the stage between
    quick = (crossing(0, 2, way_s), crossing(2, 0, way_s + 1))
    assert step_time(STAGES, (*CHAIN, *quick), "one_f_one_b", 1)[0] == plain
    there, back = crossing(0, 2, way_s + 3), crossing(2, 0, way_s + 1 + 5)
    assert step_time(STAGES, (*CHAIN, there), "one_f_one_b", 1)[0] == plain + 3
    assert step_time(STAGES, (*CHAIN, there, back), "gpipe", 1)[0] == plain + 3 + 5


def test_values_of_one_boundary_go_one_after_another():
    halves = (dataclasses.replace(one, seconds=one.seconds / 2) for one in CHAIN for _ in range(2))
    assert step_time(STAGES, tuple(halves), "gpipe", 4) == step_time(STAGES, CHAIN, "gpipe", 4)


def test_what_goes_once_is_waited_for_once():
    """There while the pipeline fills, back when it runs empty."""
    plain, _ = step_time(STAGES, CHAIN, "one_f_one_b", 6)
    way_s = 1 + 2 * 0.25
    there = dataclasses.replace(crossing(0, 2, way_s + 3), once=True)
    back = dataclasses.replace(crossing(2, 0, 2 * way_s - 0.5 + 5), once=True)
    assert step_time(STAGES, (*CHAIN, back), "gpipe", 6)[0] > plain
    late = step_time(STAGES, (*CHAIN, there), "gpipe", 6)[0]
    assert late == step_time(STAGES, CHAIN, "gpipe", 6)[0] + 3
