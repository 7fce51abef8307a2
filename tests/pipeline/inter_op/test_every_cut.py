"""The bound over every cut against the simulator on every plan, and where it is exact."""

import dataclasses
import random

import numpy as np
import pytest

from blocks.pipeline import LayerSums, StageCost, SubmeshShape, partition_mesh, submeshes
from blocks.pipeline.inter_op.budget import budget
from blocks.pipeline.inter_op.every_cut import every_cut
from blocks.pipeline.inter_op.makespans import makespans
from tests.pipeline.inter_op.stage_tables import Case, Drawn, best_simulated

SCHEDULES = ("one_f_one_b", "eager_1f1b", "gpipe")
INFINITE = float("inf")


def random_sums(rng: random.Random) -> tuple[LayerSums, int, int]:
    """Layers, alike or not, on one or two hosts; hosts, devices of each."""
    hosts, per_host = rng.choice([(1, 2), (1, 4), (2, 2)])
    shapes, options = submeshes(hosts, per_host), rng.choice([1, 2])
    draws = np.random.default_rng(rng.randrange(2**32))
    size = (rng.randint(2, 6), len(shapes), options)
    alike = rng.random() < 0.5
    layers = {}
    for name in StageCost._fields:
        values = draws.integers(1, 30, size=(1, *size[1:]) if alike else size) * np.ones(size)
        spread = np.array([shape.size**0.8 for shape in shapes])[:, None]
        layers[name] = values if name == "transient_bytes" else np.ceil(values / spread)
    if rng.random() < 0.3:  # a layer that cannot run so
        layers["forward_s"][tuple(rng.randrange(n) for n in size)] = np.inf
    stage = {
        "microbatch_bytes": draws.integers(0, 5, size=size[1:]).astype(float),
        "backward_s": -draws.integers(0, 2, size=size[1:]).astype(float),
    }
    hop = rng.choice([1, 6, 60])

    def transfer(bound: int, before: SubmeshShape, after: SubmeshShape) -> tuple[float, float]:
        return float((7 * bound + before.size) % hop), float((5 * bound + after.size) % hop)

    names = [f"o{n}" for n in range(options)]
    return LayerSums(shapes, names, layers, stage=stage, transfer=transfer), hosts, per_host


def drawn_of(seed: int) -> tuple[LayerSums, Drawn]:
    rng = random.Random(seed)
    sums, hosts, per_host = random_sums(rng)
    case = Case(sums.at(range(sums.num_layers + 1)), hosts, per_host)
    cap = rng.choice([60.0, 100.0, 200.0, INFINITE])
    count = rng.choice([1, 2, 4, 8, 16])
    return sums, Drawn(case, rng.choice(SCHEDULES), count, cap, rng.random() < 0.3)


def compare(seeds: range) -> list[float]:
    """Bounds as shares of the best plans; of the cases that have a plan."""
    shares = []
    for seed in seeds:
        sums, drawn = drawn_of(seed)
        best, _ = best_simulated(drawn)
        if best == INFINITE:
            continue
        table, hosts, per_host = drawn.case.table, drawn.case.num_hosts, drawn.case.devices_per_host
        found = every_cut(
            *(sums, drawn.schedule, drawn.num_microbatches, [drawn.cap] * len(table.shapes)),
            budget(table.shapes, hosts, per_host, whole=not drawn.idle),
            sums.num_layers,
            wanted=1.5 * best,
        )
        assert found.bound_s <= best * (1 + 1e-9), seed
        if found.plan is not None:
            cuts, plan = found.plan
            case = Case(sums.at(cuts), hosts, per_host)
            priced = dataclasses.replace(drawn, case=case).priced()
            assert makespans(priced, [plan]).min() >= found.bound_s * (1 - 1e-9), seed
        shares.append(found.bound_s / best)
    return shares


def test_no_plan_is_faster():
    shares = compare(range(40))
    assert len(shares) > 25
    assert np.mean(shares) > 0.97
    assert sum(share > 1 - 1e-3 for share in shares) > len(shares) / 3, "often exact"


@pytest.mark.nightly
def test_no_plan_is_faster_of_many():
    assert len(compare(range(1000, 1600))) > 400


def equal_layers(num_layers: int, fixed_bytes: float = 0.0) -> LayerSums:
    """A second forward, two backward, on one device each."""
    ones = np.ones((num_layers, 1, 1))
    layers = {"forward_s": ones, "backward_s": 2 * ones, "fixed_bytes": fixed_bytes * ones}
    return LayerSums([SubmeshShape(1, 1)], ["only"], layers)


@pytest.mark.parametrize("schedule", ["one_f_one_b", "gpipe"])
def test_exact_where_stages_are_alike(schedule: str):
    """1,024 layers on 8 devices: 128 of three seconds each, for 16 microbatches and 7 more."""
    plan = partition_mesh(
        equal_layers(1024), 1, 8, num_microbatches=16, schedules=[schedule], effort=0
    )
    assert plan.makespan_s == (16 + 7) * 128 * 3
    assert plan.granularity == 1, "of every cut"
    assert plan.bound_s == pytest.approx(plan.makespan_s, rel=1e-9)
    assert plan.bound_s <= plan.makespan_s * (1 + 1e-12)


def test_uneven_stages_are_better_where_forwards_come_early():
    """The same: what comes early fills the first round trip of stages that are slower."""
    ask = {"num_microbatches": 16, "schedules": ["eager_1f1b"], "effort": 0}
    plan = partition_mesh(equal_layers(1024), 1, 8, **ask)
    even = 16 + 7
    assert plan.makespan_s < 0.93 * even * 128 * 3
    assert plan.timeline().makespan == plan.makespan_s
    assert plan.bound_s <= plan.makespan_s <= 1.04 * plan.bound_s


def test_cuts_between_those_of_the_grid_are_found():
    """331 layers on 8 devices, where a coarse grid has no even cuts."""
    ask = {"num_microbatches": 16, "schedules": ["1f1b"], "max_cells": 20, "effort": 0}
    grid = partition_mesh(equal_layers(331), 1, 8, bound_every_cut=False, **ask)
    found = partition_mesh(equal_layers(331), 1, 8, **ask)
    assert (grid.granularity, found.granularity) == (17, 1)
    sizes = [stage.stop - stage.first for stage in found.stages]
    assert max(sizes) == 42, "as even as can be"
    assert found.bound_s <= found.makespan_s <= grid.makespan_s
    assert found.gap < 0.01


def test_memory_is_part_of_the_bound():
    """Only 100 layers have room on a device, so none of eight devices can be spared."""
    sums, devices = equal_layers(800, 1.0), budget([SubmeshShape(1, 1)], 1, 8, whole=False)
    limits = (sums, "gpipe", 1)
    free = every_cut(*limits, [INFINITE], devices, 8, wanted=1e9)
    tight = every_cut(*limits, [100.0], devices, 8, wanted=1e9)
    none = every_cut(*limits, [99.0], devices, 8, wanted=1e9)
    assert free.bound_s == pytest.approx(2400)
    assert tight.bound_s == pytest.approx(2400)
    assert none.bound_s == 1e9, "no plan at all"
    assert tight.plan is not None
    assert tight.plan[0] == (0, 100, 200, 300, 400, 500, 600, 700, 800)


def test_devices_of_every_kind_are_counted():
    """Two devices, one four times as fast: there is no second one of it."""
    kinds = ("slow", "fast")
    shapes = submeshes(2, 1, kinds=kinds)
    seconds = np.array([4.0 if shape.kind == "slow" else 1.0 for shape in shapes])
    layers = np.ones((120, len(shapes), 1)) * seconds[:, None]
    sums = LayerSums(shapes, ["only"], {"forward_s": layers, "backward_s": 2 * layers})
    found = partition_mesh(sums, 2, 1, kinds=kinds, num_microbatches=8, schedules=["1f1b"])
    assert sorted(stage.shape.kind for stage in found.stages) == ["fast", "slow"]
    assert found.bound_s <= found.makespan_s
    limits = ([INFINITE] * 2, budget(shapes, 2, 1, kinds), 120)
    loose = every_cut(sums, "one_f_one_b", 8, *limits, wanted=1e9)
    assert loose.bound_s <= found.makespan_s
    tight = partition_mesh(
        sums, 2, 1, kinds=kinds, num_microbatches=8, schedules=["1f1b"], idle_devices=True
    )
    assert tight.makespan_s <= found.makespan_s
