"""Stages for serving against every plan there is."""

import itertools
import json
import random

import numpy as np
import pytest

from blocks.pipeline import DoesNotFit, InferencePlan, partition_inference, partition_layers
from tests.pipeline.inter_op.stage_tables import Drawn, Plan, draw, every_plan


def rated(drawn: Drawn, plan: Plan, in_flight: int) -> tuple[float, float, float]:
    """Slowest stage, latency and bytes over the cap."""
    cells, send = drawn.case.table.cells, drawn.case.table.send_s
    forward = [float(cells["forward_s"][stage]) for stage in plan]
    sends = [float(send[b[0], a[2], b[2]]) for a, b in itertools.pairwise(plan)]
    held = cells["fixed_bytes"] + cells["transient_bytes"] + in_flight * cells["microbatch_bytes"]
    over = max(float(held[stage]) - drawn.cap for stage in plan)
    return max(forward), sum(forward) + sum(sends), over


@pytest.mark.parametrize("seed", range(24))
def test_equals_brute_force(seed):
    rng = random.Random(seed)
    drawn, in_flight = draw(rng, max_layers=6), rng.choice([1, 2, 4])
    case, asked = drawn.case, rng.choice([None, None, 1, 2, 3])
    every = [
        (len(plan), *rated(drawn, plan, in_flight))
        for plan in every_plan(case, idle=drawn.idle)
        if asked in (None, len(plan))
    ]
    options = {
        "kinds": case.kinds,
        "memory_cap_bytes": drawn.cap,
        "idle_devices": drawn.idle,
        "in_flight": in_flight,
        "num_stages": asked,
    }

    def found() -> InferencePlan:
        return partition_inference(case.table, case.num_hosts, case.devices_per_host, **options)

    if asked and asked > case.table.num_layers:
        with pytest.raises(ValueError, match="every stage holds at least one layer"):
            found()
        return
    fits = [plan for plan in every if plan[3] <= 0]
    if not fits:
        with pytest.raises(DoesNotFit) as caught:
            found()
        assert caught.value.limit == ("memory" if every else "devices")
        assert caught.value.shortfall_bytes == min((p[3] for p in every), default=0)
        return
    plan = found()
    assert plan.num_stages * plan.slowest_s == min(n * slowest for n, slowest, _, _ in fits)
    same = [p for p in fits if p[:2] == (plan.num_stages, plan.slowest_s)]
    assert plan.latency_s == min(latency for _, _, latency, _ in same)
    assert dict(plan.by_num_stages) == {
        count: min(slowest for n, slowest, _, _ in fits if n == count)
        for count in {plan[0] for plan in fits}
    }
    devices = sum((stage.devices for stage in plan.stages), ())
    assert len(set(devices)) == len(devices)
    assert all(stage.peak_bytes <= drawn.cap for stage in plan.stages)
    assert max(stage.forward_s for stage in plan.stages) == plan.slowest_s
    assert InferencePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_equal_submeshes_are_the_partition_of_layers():
    """One device a stage: the slowest stage is that of ``partition_layers``."""
    from blocks.pipeline import LayerSums, SubmeshShape

    rng = np.random.default_rng(0)
    for _ in range(20):
        seconds = rng.integers(1, 50, size=9)
        layers = LayerSums([SubmeshShape(1, 1)], ["all"], {"forward_s": seconds[:, None, None]})
        plan = partition_inference(layers, 1, 4)
        assert plan.num_stages == 4, "every device works"
        assert plan.slowest_s == partition_layers(seconds.tolist(), 4).bottleneck_s
