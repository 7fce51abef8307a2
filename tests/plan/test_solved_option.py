"""Stages solved on their own as a further way to run layers."""

import dataclasses

import pytest

from blocks.pipeline.inter_op import InterOpPlan
from recipes.plan.config import PlanConfig
from recipes.plan.search.partition import Partition, memory_bytes
from recipes.plan.search.search import search
from recipes.plan.search.solved_option import with_solved
from recipes.plan.search.turns import Searched
from tests.plan.searching import chain_of, cluster_of

CONFIG = PlanConfig(
    "mlp",
    "p3.16xlarge",
    batch_size=64,
    num_microbatches=8,
    mesh_axes=1,
    max_stage_devices=1,
    recompute=True,
    schedules="gpipe",
    workers=1,
)


@pytest.fixture(scope="module")
def searched() -> Searched:
    return search(chain_of, cluster_of(), CONFIG)


def test_the_tables_have_what_stages_cost_as_solved(searched: Searched):
    """Even where first and last layers of a stage cost other than those between them."""
    plan, sums = searched.plan, searched.tables.sums[8]
    assert len(plan.stages) == 4
    pairs = zip(searched.inter_op.stages, searched.solutions, plan.stages, strict=True)
    for stage, solution, planned in pairs:
        options = searched.tables.options[8][stage.shape]
        option = next(n for n, one in enumerate(options) if one.solved is solution.prices)
        bounds = sorted({0, stage.first, stage.stop, sums.num_layers})
        table, shape = sums.at(bounds), sums.shapes.index(stage.shape)
        cost = table.cost(bounds.index(stage.first), bounds.index(stage.stop), shape, option)
        predicted = planned.predicted
        assert cost.forward_s == pytest.approx(predicted.forward_s, rel=1e-9)
        assert cost.backward_s == pytest.approx(predicted.backward_s, rel=1e-9)
        assert cost.once_s == pytest.approx(predicted.update_s, rel=1e-9)
        held = cost.fixed_bytes + cost.transient_bytes + stage.in_flight * cost.microbatch_bytes
        assert held == pytest.approx(predicted.peak_bytes, rel=1e-9)


def test_a_stage_is_one_option_however_often_it_is_solved(searched: Searched):
    found, tables = searched.inter_op, searched.tables
    again = with_solved(tables, found, searched.chain, searched.solutions)
    assert again.options == tables.options
    widths = {count: len(sums.options) for count, sums in again.sums.items()}
    assert widths == {count: len(sums.options) for count, sums in tables.sums.items()}


def test_more_ways_to_run_layers_are_never_slower(searched: Searched):
    """The bound falls, or stays, as strategies are added; so does the step by the tables."""

    def asked(tables) -> InterOpPlan:
        partition = Partition(tables, cluster_of(), CONFIG)
        return partition.best(memory_bytes(cluster_of(), CONFIG), every_cut=True)

    few = {
        count: {shape: tuple(o for o in some if o.solved is None) for shape, some in by.items()}
        for count, by in searched.tables.options.items()
    }
    most = max(len(some) for by in few.values() for some in by.values())
    sums = searched.tables.sums[8]
    first = type(sums)(
        sums.shapes,
        sums.options[:most],
        {name: values[..., :most] for name, values in sums.layers.items()},
        stage={name: values[..., :most] for name, values in sums.stage.items()},
        transfer=sums.transfer,
    )
    before = asked(dataclasses.replace(searched.tables, sums={8: first}, options=few))
    after = asked(searched.tables)
    assert after.makespan_s <= before.makespan_s * (1 + 1e-3)
    assert after.bound_s <= before.bound_s * (1 + 1e-3)
    assert after.bound_s <= searched.plan.predicted.step_s * (1 + 1e-9)
