"""``step_timeline``: the predicted step, stage by stage over time."""

from blocks.pipeline import Action, Kind, Timeline, simulate
from blocks.pipeline.schedules import SCHEDULES
from recipes.plan.parallel_plan import ParallelPlan

MAX_MICROBATCHES = 16
"""Drawn of a step with more: the pattern repeats."""


def step_timeline(plan: ParallelPlan, *, max_microbatches: int = MAX_MICROBATCHES) -> Timeline:
    """The schedule of the plan, simulated with its predicted seconds; the update is left out.

    Backward passes that a schedule cuts in two are taken to halve.
    """
    count = min(plan.num_microbatches, max_microbatches)
    schedule = SCHEDULES[plan.schedule](len(plan.stages), (1,) * count)
    between = _transfers(plan)

    def duration(action: Action) -> float:
        predicted = plan.stages[action.stage].predicted
        if action.kind in (Kind.FORWARD, Kind.RECOMPUTE):
            return predicted.forward_s
        share = 1.0 if action.kind == Kind.FULL_BACKWARD else 0.5
        return share * predicted.backward_s

    def transfer(action: Action) -> float:
        return between.get((action.stage, action.kind == Kind.RECEIVE_BACKWARD), 0.0)

    return simulate(schedule, duration, transfer=transfer)


def _transfers(plan: ParallelPlan) -> dict[tuple[int, bool], float]:
    """Seconds until what a stage's pass needs has come, by stage and whether it is the backward."""
    found: dict[tuple[int, bool], float] = {}
    for boundary in plan.boundaries:
        key = (boundary.target, boundary.phase == "backward")
        found[key] = found.get(key, 0.0) + boundary.seconds
    return found
