"""``step_time``: a plan's step, simulated. Needs no torch."""

import dataclasses
from collections.abc import Sequence

from blocks.pipeline import Action, Timeline, simulate
from blocks.pipeline.action import Kind
from blocks.pipeline.schedules import SCHEDULES
from recipes.plan.stage_plan import Boundary, StagePlan


def step_timeline(
    stages: Sequence[StagePlan],
    boundaries: Sequence[Boundary],
    schedule: str,
    num_microbatches: int,
) -> Timeline:
    """The passes of all microbatches, with what goes between stages, neighbours or not; updates
    come after."""
    every: dict[tuple[str, int, int], float] = {}
    once: dict[tuple[str, int, int], float] = {}
    for boundary in boundaries:
        way = (boundary.phase, boundary.source, boundary.target)
        into = once if boundary.once else every
        into[way] = into.get(way, 0.0) + boundary.seconds

    def duration(action: Action) -> float:
        predicted = stages[action.stage].predicted
        first = action.kind is Kind.FORWARD
        return predicted.forward_s if first else predicted.backward_s

    def transfer(receive: Action) -> float:
        forward = receive.kind is Kind.RECEIVE_FORWARD
        way = ("forward" if forward else "backward", receive.peer, receive.stage)
        now = receive.sequence == (0 if forward else num_microbatches - 1)
        return every.get(way, 0.0) + (once.get(way, 0.0) if now else 0.0)

    program = SCHEDULES[schedule](len(stages), (1,) * num_microbatches)
    skips = {(min(ends), max(ends)) for _, *ends in (*every, *once)} - {*program.edges}
    if skips:
        program = dataclasses.replace(program, edges=(*program.edges, *sorted(skips)))
    return simulate(program, duration, transfer=transfer)


def step_time(
    stages: Sequence[StagePlan],
    boundaries: Sequence[Boundary],
    schedule: str,
    num_microbatches: int,
) -> tuple[float, float]:
    """Seconds of the step, and the share of all devices' time that they wait in."""
    timeline = step_timeline(stages, boundaries, schedule, num_microbatches)
    last = [max((span.end for span in spans), default=0.0) for spans in timeline.spans]
    ends = [end + s.predicted.update_s for end, s in zip(last, stages, strict=True)]
    step_s = float(max(ends))
    busy = devices = 0.0
    for stage in stages:
        predicted, count = stage.predicted, stage.mesh.num_ranks
        each = num_microbatches * (predicted.forward_s + predicted.backward_s)
        busy += count * (each + predicted.update_s)
        devices += count
    return step_s, max(0.0, 1 - busy / (devices * step_s)) if step_s else 0.0
