"""The bound by trips against the simulator, on any pipeline whose forwards and backwards alternate
and on those it is exact for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.pipeline import LayerSums, SubmeshShape, simulate
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.inter_op.budget import budget
from blocks.pipeline.inter_op.formula import trip_bound
from blocks.pipeline.inter_op.priced import Priced
from blocks.pipeline.inter_op.step_bound import step_bounds
from blocks.pipeline.schedules import SCHEDULES

Stages = list[tuple[int, int, int]]
"""Seconds of a forward, of a backward, and of what is done once."""

Hops = list[tuple[int, int]]
"""Seconds there and back."""

ALTERNATE = pytest.mark.parametrize("schedule", ["one_f_one_b", "eager_1f1b"])
SECONDS = st.integers(1, 20)
STAGE = st.tuples(SECONDS, SECONDS, SECONDS)


@st.composite
def pipelines(draw) -> tuple[int, Stages, Hops]:
    """Microbatches, stages, hops."""
    stages = draw(st.lists(STAGE, min_size=1, max_size=6))
    hop = st.tuples(st.integers(0, 6), st.integers(0, 6))
    hops = draw(st.lists(hop, min_size=len(stages) - 1, max_size=len(stages) - 1))
    return draw(st.integers(1, 24)), stages, hops


def bounds(
    count: int, stages: Stages, hops: Hops, schedule: str = "one_f_one_b"
) -> tuple[float, float]:
    """By trips and by chains."""
    costs = np.array(stages, float)[:, None, None]
    names = ("forward_s", "backward_s", "once_s")
    layers = {name: costs[..., index] for index, name in enumerate(names)}
    one, depth = SubmeshShape(1, 1), len(stages)
    sums = LayerSums([one], ["only"], layers, transfer=lambda layer, a, b: hops[layer - 1])
    priced = Priced(sums.at(range(depth + 1)), schedule, count, [float("inf")])
    trips = trip_bound(priced)
    assert trips is not None
    chains = step_bounds(priced, budget([one], 1, depth), depth).totals[depth]
    return trips.seconds([(n, n + 1, 0, 0) for n in range(depth)]), chains


def simulated(count: int, stages: Stages, hops: Hops, schedule: str = "one_f_one_b") -> float:
    def duration(action: Action) -> float:
        return stages[action.stage][0 if action.kind is Kind.FORWARD else 1]

    def transfer(action: Action) -> float:
        there = action.kind is Kind.RECEIVE_FORWARD
        return hops[action.peer][0] if there else hops[action.stage][1]

    program = SCHEDULES[schedule](len(stages), (1,) * count)
    spans = simulate(program, duration, transfer=transfer).spans
    return max(float(run[-1].end) + once for run, (_, _, once) in zip(spans, stages, strict=True))


@ALTERNATE
@settings(max_examples=50, deadline=None)
@given(pipelines())
def test_no_pipeline_is_faster(schedule, pipeline):
    """Whole numbers of seconds: not by a bit."""
    count, stages, hops = pipeline
    asked = count, stages, hops, schedule
    assert max(bounds(*asked)) <= simulated(*asked)


@ALTERNATE
@settings(max_examples=20, deadline=None)
@given(STAGE, st.integers(1, 6), st.integers(1, 24))
def test_exact_where_stages_are_alike(schedule, stage, depth, count):
    """At least as many microbatches as stages, or fewer."""
    pipeline = count, [stage] * depth, [(0, 0)] * (depth - 1)
    assert bounds(*pipeline, schedule)[0] == simulated(*pipeline, schedule)


@settings(max_examples=20, deadline=None)
@given(STAGE, st.integers(1, 6), st.integers(1, 24), st.integers(0, 20))
def test_exact_where_messages_are_hidden(stage, depth, count, there):
    """There and back they take as long as both passes, at most."""
    there = min(there, stage[0] + stage[1])
    hops = [(there, stage[0] + stage[1] - there)] * (depth - 1)
    pipeline = count, [stage] * depth, hops, "eager_1f1b"
    assert bounds(*pipeline)[0] == simulated(*pipeline)


@ALTERNATE
@settings(max_examples=25, deadline=None)
@given(pipelines(), st.integers(0, 5), st.integers(0, 12))
def test_exact_where_one_stage_is_slow(schedule, pipeline, index, more):
    """It takes as long as all others and the transfers together; the others have uneven times."""
    _, stages, hops = pipeline
    stages = [(forward, backward, 0) for forward, backward, _ in stages]
    all_of_it = sum(map(sum, stages)) + sum(map(sum, hops))
    stages[index % len(stages)] = (all_of_it, all_of_it, 0)
    slow = len(stages) + more, stages, hops, schedule
    assert max(bounds(*slow)) == simulated(*slow)


def test_a_slow_stage_waits_for_the_round_trip_at_both_ends():
    """Eight stages of 3 s, the third of 4 s, 32 microbatches. By hand: 25 s through all, then
    31 - 6 passes of the slow stage, and one trip of six microbatches from it to the end and back,
    19 s. Its passes of one kind alone would say 31 x 2 + 26 x 2 = 114 s."""
    stages = [(1, 2, 0)] * 8
    stages[2] = (2, 2, 0)
    pipeline = 32, stages, [(0, 0)] * 7
    assert bounds(*pipeline)[0] == simulated(*pipeline) == 25 + (31 - 6) * 4 + 19
