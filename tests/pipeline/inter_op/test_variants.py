"""What is known of special cases: ablations, published test cases, balanced pipelines."""

import itertools
import random

import numpy as np
import pytest

from blocks.pipeline import DoesNotFit, LayerSums, StageTable, SubmeshShape, submeshes
from blocks.pipeline.inter_op import partition_mesh
from blocks.pipeline.inter_op.budget import budget
from blocks.pipeline.inter_op.closed_formula import closed_formula
from blocks.pipeline.inter_op.formula import alpa
from blocks.pipeline.inter_op.makespans import makespans
from blocks.pipeline.inter_op.priced import Priced
from tests.pipeline.inter_op.stage_tables import random_case


def only_shapes(table: StageTable, kept: list[int]) -> StageTable:
    cells = {name: values[:, :, kept] for name, values in table.cells.items()}
    shapes = tuple(table.shapes[m] for m in kept)
    sends = (values[:, kept][:, :, kept] for values in (table.send_s, table.return_s))
    return StageTable(table.bounds, shapes, table.options, cells, *sends)


@pytest.mark.parametrize("seed", range(12))
def test_equal_meshes_and_equal_layers_are_never_better(seed):
    """The two ablations of Alpa's section 8.3, each optimal in its own smaller space."""
    case = random_case(random.Random(seed), 8, 2, 4, num_options=1)
    table, options = case.table, {"num_microbatches": 8, "schedules": ["1f1b"]}
    whole = partition_mesh(table, 2, 4, **options)
    rivals = 0
    for m in range(len(table.shapes)):
        try:
            equal = partition_mesh(only_shapes(table, [m]), 2, 4, **options)
        except DoesNotFit:
            continue
        rivals += 1
        assert whole.makespan_s <= equal.makespan_s
    for count in (1, 2, 4, 8):
        try:
            equal = partition_mesh(table.at(range(0, 9, 8 // count)), 2, 4, **options)
        except DoesNotFit:
            continue
        rivals += 1
        assert whole.makespan_s <= equal.makespan_s
    assert rivals


def alpa_reference(seconds, sizes, num_layers, num_devices, num_microbatches) -> float:
    """Equations 2 to 5, caps ascending, in plain Python."""
    best = float("inf")
    for cap in sorted({x for x in seconds.values() if x < float("inf")}):
        if num_microbatches * cap >= best:
            break
        least = {(0, num_layers, 0): 0.0}  # stages, first layer, devices
        for stages, k in itertools.product(range(1, num_layers + 1), range(num_layers)):
            for d in range(1, num_devices + 1):
                found = [
                    seconds[k, i, m] + least.get((stages - 1, i, d - size), float("inf"))
                    for i in range(k + 1, num_layers + 1)
                    for m, size in enumerate(sizes)
                    if size <= d and seconds[k, i, m] <= cap
                ]
                least[stages, k, d] = min(found, default=float("inf"))
        total = min(least[s, 0, num_devices] for s in range(1, num_layers + 1))
        best = min(best, total + (num_microbatches - 1) * cap)
    return best


def test_the_case_of_alpas_own_tests():
    """Eight layers, eight devices, sixteen microbatches, random stage times of seed 42."""
    rng, shapes = np.random.default_rng(42), submeshes(1, 8)
    times = rng.random((9, 9, len(shapes)))

    def stage(first, stop, shape, option):
        from blocks.pipeline import StageCost

        return StageCost(times[first, stop, shapes.index(shape)], 0.0)

    table = StageTable.evaluate(range(9), shapes, ["all"], stage)
    seconds = {
        (i, j, m): times[i, j, m] for i in range(8) for j in range(i + 1, 9) for m in range(4)
    }
    expected = alpa_reference(seconds, [shape.size for shape in shapes], 8, 8, 16)
    priced = Priced(table, "one_f_one_b", 16, [float("inf")] * 4)
    found = closed_formula(alpa(priced), budget(shapes, 1, 8))
    assert found.choices[0].seconds == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", ["gpipe", "one_f_one_b", "zb_h1"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_closed_formula_is_the_simulator_where_stages_are_alike(schedule, depth):
    for count in (depth, depth + 1, 8, 13):
        seconds = np.full((depth, 1, 1), 3.0)
        kinds = {"forward_s": seconds, "backward_s": seconds, "weight_s": seconds}
        table = LayerSums([SubmeshShape(1, 1)], ["all"], kinds).at(range(depth + 1))
        priced = Priced(table, schedule, count, [float("inf")], depth)
        plan = tuple((n, n + 1, 0, 0) for n in range(depth))
        assert alpa(priced).seconds(plan) == makespans(priced, [plan])[0]


def test_slow_devices_get_fewer_layers():
    """Two kinds, one half as fast, and a slow link between them."""
    kinds = ("fast", "slow")
    shapes = submeshes(2, 2, kinds=kinds)
    speed = {"fast": 2.0, "slow": 1.0}
    seconds = np.array([[1 / (shape.size * speed[shape.kind])] for shape in shapes])
    forward = np.broadcast_to(seconds, (12, len(shapes), 1))
    layers = LayerSums(
        shapes,
        ["all"],
        {"forward_s": forward, "backward_s": 2 * forward, "fixed_bytes": 0 * forward + 1},
        transfer=lambda layer, a, b: (0.5, 0.5) if a.kind != b.kind else (0.0, 0.0),
    )
    plan = partition_mesh(layers, 2, 2, kinds=kinds, num_microbatches=16, schedules=["1f1b"])
    counts = [(stage.shape.kind, stage.stop - stage.first) for stage in plan.stages]
    assert sum(count for kind, count in counts if kind == "fast") == 8, "of twelve"
    for stage in plan.stages:
        hosts = {device // 2 for device in stage.devices}
        assert hosts == {kinds.index(stage.shape.kind)}
    assert plan.gap == 0
    # Each kind has its own cap; the slow one has room for three layers only.
    caps = {"fast": 100, "slow": 3}
    tight = partition_mesh(
        layers, 2, 2, kinds=kinds, num_microbatches=16, schedules=["1f1b"], memory_cap_bytes=caps
    )
    slow = [stage for stage in tight.stages if stage.shape.kind == "slow"]
    assert all(stage.stop - stage.first <= 3 for stage in slow)
    assert tight.makespan_s >= plan.makespan_s
    with pytest.raises(ValueError, match=r"a number for the kinds \['slow'\] too"):
        partition_mesh(layers, 2, 2, kinds=kinds, num_microbatches=4, memory_cap_bytes={"fast": 1})


@pytest.mark.parametrize("seed", range(8))
def test_the_shortfall_is_what_the_cap_must_rise_by(seed):
    rng = random.Random(seed)
    case = random_case(rng, 5, 2, 2)
    schedules = rng.choice(
        [["1f1b"], ["1f1b", "eager_1f1b", "gpipe"], ["zb_h1", "gpipe"], ["zb_h2", "1f1b"]]
    )

    def plan(cap):
        options = {"num_microbatches": [4, 8], "schedules": schedules}
        return partition_mesh(case.table, 2, 2, memory_cap_bytes=cap, **options)

    with pytest.raises(DoesNotFit, match="memory_cap_bytes: expected at least") as caught:
        plan(1)
    assert caught.value.limit == "memory"
    shortage = caught.value.shortage
    assert shortage is not None
    assert shortage.short_bytes == caught.value.shortfall_bytes
    assert (shortage.cap_bytes, shortage.stage < shortage.num_stages) == (1, True)
    words = f"stage {shortage.stage}, layers {shortage.first} to {shortage.stop - 1} on "
    assert words in str(caught.value)
    needed = 1 + caught.value.shortfall_bytes
    enough = plan(needed)
    assert max(stage.peak_bytes for stage in enough.stages) == needed
    assert shortage.needed_bytes == needed
    with pytest.raises(DoesNotFit):
        plan(needed - 1)


def test_devices_that_cannot_all_be_used_are_named():
    layers = LayerSums([SubmeshShape(1, 2)], ["all"], {"forward_s": np.ones((1, 1, 1))})
    with pytest.raises(DoesNotFit, match="use the devices as asked") as caught:
        partition_mesh(layers, 1, 4, num_microbatches=2)
    assert caught.value.limit == "devices"
    plan = partition_mesh(layers, 1, 4, num_microbatches=2, idle_devices=True)
    assert plan.stages[0].devices == (0, 1)
