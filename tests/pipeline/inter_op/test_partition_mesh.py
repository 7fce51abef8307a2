"""The whole search against every plan there is, simulated one by one."""

import json
import random

import numpy as np
import pytest

from blocks.pipeline import (
    DoesNotFit,
    InterOpPlan,
    LayerSums,
    SubmeshShape,
    check_schedule,
    peak_bytes,
)
from blocks.pipeline.inter_op import StageTable, partition_mesh
from blocks.pipeline.inter_op.flow import FLOWS
from blocks.pipeline.inter_op.makespans import makespans
from blocks.pipeline.memory import MemorySizes
from blocks.pipeline.schedules import SCHEDULES
from tests.pipeline.inter_op.stage_tables import (
    best_simulated,
    draw,
    every_plan,
    fitting,
    plans_together,
    random_case,
)

ENOUGH = 10**6


@pytest.mark.parametrize("seed", range(24))
def test_no_plan_at_all_is_simulated_to_be_faster(seed):
    """Gap 0, with memory caps, options, transfers, two kinds of devices and idle ones."""
    drawn = draw(random.Random(seed), max_layers=6)
    best, _ = best_simulated(drawn)
    if best == float("inf"):
        with pytest.raises(DoesNotFit):
            drawn.partition()
        return
    plan = drawn.partition(effort=ENOUGH)
    assert plan.makespan_s == best
    assert plan.bound_s == pytest.approx(best, rel=1e-12)
    check_plan(plan, drawn)


def check_plan(plan: InterOpPlan, drawn) -> None:
    """What every plan promises."""
    case = drawn.case
    check_schedule(plan.program())
    spans = plan.timeline().spans
    ends = [run[-1].end + stage.cost.once_s for run, stage in zip(spans, plan.stages, strict=True)]
    assert max(ends) == plan.makespan_s >= plan.bound_s * (1 - 1e-12)
    assert plan.bounds[0] == 0
    assert plan.bounds[-1] == case.table.num_layers
    devices = sum((stage.devices for stage in plan.stages), ())
    assert len(set(devices)) == len(devices) == sum(stage.shape.size for stage in plan.stages)
    if not drawn.idle:
        assert len(devices) == case.num_hosts * case.devices_per_host
    assert all(stage.peak_bytes <= drawn.cap for stage in plan.stages)
    assert InterOpPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize("name", FLOWS)
def test_microbatches_in_flight_are_those_of_the_schedule(name):
    """What the schedule holds at most, weight gradients put off included."""
    held = MemorySizes(
        activations=lambda stage, n, start: n, weight_inputs=lambda stage, n, start: n
    )
    for depth in range(1, 7):
        for count in (1, 2, 3, 5, 8, 16):
            schedule = SCHEDULES[name](depth, (1,) * count)
            most = peak_bytes(schedule, held)
            flow = FLOWS[name]
            for stage in range(depth):
                # A backward and what it puts aside are counted both while it runs.
                counted = flow.in_flight(depth - stage, depth, count)
                assert most[stage] <= counted + flow.splits
                if not flow.splits:
                    assert most[stage] == counted


def test_the_number_of_microbatches_and_the_schedule_are_chosen_together():
    rng = random.Random(5)
    tables = {count: random_case(rng, 4, 2, 2).table for count in (2, 4, 8)}
    names = ["1f1b", "eager_1f1b", "gpipe", "zb_h1"]
    plan = partition_mesh(tables.__getitem__, 2, 2, num_microbatches=[2, 4, 8], schedules=names)
    alone = [
        partition_mesh(tables[count], 2, 2, num_microbatches=count, schedules=[name])
        for count in tables
        for name in names
    ]
    assert plan.makespan_s == min(one.makespan_s for one in alone)
    assert plan.bound_s == pytest.approx(plan.makespan_s)
    assert (plan.schedule, plan.num_microbatches) in [(r[0], r[1]) for r in plan.rivals]


def test_many_layers_are_cut_coarsely_first():
    """Stages that scale: the answer is even, and proven within a percent."""
    table = even_table(48, 2, 4)
    plan = partition_mesh(table, 2, 4, num_microbatches=32, schedules=["1f1b"], epsilon=1e-3)
    assert plan.gap <= 0.01
    assert plan.makespan_s <= 1.02 * (48 * 32 * 3 / 8 + 48 * 3 / 8 * 1)


def even_table(num_layers: int, num_hosts: int, per_host: int) -> StageTable:
    """Every layer takes 1 s forward and 2 s back on one device, and scales."""
    from blocks.pipeline.inter_op import submeshes

    shapes = submeshes(num_hosts, per_host)
    seconds = np.array([[1 / shape.size] for shape in shapes])
    forward = np.broadcast_to(seconds, (num_layers, len(shapes), 1))
    layers = LayerSums(shapes, ["all"], {"forward_s": forward, "backward_s": 2 * forward})
    return layers.at(range(num_layers + 1))


@pytest.mark.parametrize("seed", range(8))
def test_plans_counted_together_are_every_plan(seed):
    """What the answers are compared with."""
    drawn = draw(random.Random(seed), max_layers=5)
    together = [
        tuple(map(tuple, plan))
        for plans in plans_together(drawn.case, idle=drawn.idle, most=7)
        for plan in plans.tolist()
    ]
    assert sorted(together) == sorted(every_plan(drawn.case, idle=drawn.idle))
    simulated = [makespans(drawn.priced(len(plan)), [plan])[0] for plan in fitting(together, drawn)]
    assert best_simulated(drawn, together=5) == (
        min(simulated, default=float("inf")),
        len(together),
    )


def test_forwards_come_early_where_messages_are_slow_and_memory_allows():
    """Four stages of 3 s with 1 s between them there and back, 32 microbatches: 1F1B waits in every
    turn for what is on its way, eager 1F1B once a step. It holds 7, 5, 3 and 1 microbatches."""
    one = SubmeshShape(1, 1)
    ones = np.ones((4, 1, 1))
    layers = {"forward_s": ones, "backward_s": 2 * ones, "microbatch_bytes": ones}
    table = LayerSums([one], ["only"], layers, transfer=lambda layer, a, b: (1.0, 1.0))

    def plan(cap: float, *names: str) -> InterOpPlan:
        ask = {"num_microbatches": 32, "schedules": names or ("1f1b", "eager_1f1b")}
        return partition_mesh(table, 1, 4, memory_cap_bytes=cap, **ask)

    eager, plain = plan(7.0), plan(6.0, "1f1b")
    assert eager.schedule == "eager_1f1b"
    assert eager.makespan_s == eager.bound_s == (32 + 3) * 3 + 3 * 2
    assert [stage.in_flight for stage in eager.stages] == [7, 5, 3, 1]
    assert [stage.peak_bytes for stage in eager.stages] == [7, 5, 3, 1]
    assert plain.makespan_s >= 18 + 7 * 18 + 3 * 3, "seven round trips of four microbatches"
    tight = plan(4.0)
    assert tight.makespan_s == plain.makespan_s
    assert tight.schedule == "one_f_one_b"
    assert [stage.in_flight for stage in tight.stages] == [4, 3, 2, 1]
