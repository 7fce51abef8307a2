"""Plans for Muon: what gathering matrices whole takes, predicted and done."""

import dataclasses
from collections.abc import Mapping

import pytest
import torch

from blocks.sharding import (
    Group,
    Mesh,
    MeshCost,
    OpRule,
    Replicate,
    ShardingSpec,
    bundled_cluster,
    count,
    run_local,
)
from blocks.sharding.intra_op import price
from recipes.plan.execute import FxOperations, PlannedModule, state_of
from recipes.plan.execute.counted_group import counted
from recipes.plan.families import family
from recipes.plan.search.layer_price import layer_prices
from recipes.plan.trace import TracedModule, trace
from tests.plan.executing import random_program

MESHES = (Mesh.of(a=2), Mesh.of(a=3), Mesh.of(a=2, b=2))


@pytest.fixture(scope="module")
def traced() -> TracedModule:
    made = family("decoder:tiny")
    inputs = made.inputs(4, 16, generator=None, dtype=torch.float32)
    return trace(made.make(), (), inputs, optimizer="muon")


def test_matrices_of_layers_are_gathered_and_nothing_else(traced: TracedModule) -> None:
    values = traced.graph.values
    gathered = {
        values[node.inputs[0]].name
        for node in traced.graph.nodes
        if node.role == "update" and node.rule.gathered_itemsize == 4
    }
    every = {v.name for v in values if v.name.endswith(".weight")}
    assert gathered == {n for n in every if n.startswith("layers.") and "norm" not in n}
    ops = {n.op for n in traced.graph.nodes if n.role == "update"}
    assert ops == {"update.muon", "update.adamw"}


@pytest.mark.parametrize("seed", range(3))
def test_gathers_are_priced_and_counted_as_they_are_done(traced: TracedModule, seed: int) -> None:
    mesh = MESHES[seed]
    program = random_program(traced, mesh, seed)
    updates = [
        (node, strategy)
        for node, strategy in zip(program.graph.nodes, program.strategies, strict=True)
        if node.op == "update.muon"
    ]
    state = state_of(family("decoder:tiny").make())

    def work(rank: int, groups: Mapping[str, Group]) -> dict[str, dict[str, int]]:
        counters = counted(groups)
        module = PlannedModule(program, FxOperations(traced.ops), rank, counters, state)
        for node, strategy in updates:
            value = program.graph.values[node.inputs[0]]
            lies, whole = ShardingSpec(mesh, strategy.outputs[0]), ShardingSpec.replicated(mesh)
            part = torch.zeros(lies.local_shape(value.shape, rank))
            assert module.machine.moved(part, value.shape, lies, whole).shape == value.shape
        return {a: {str(k): n for k, n in g.bytes.items()} for a, g in counters.items()}

    nodes = [
        dataclasses.replace(n, rule=dataclasses.replace(n.rule, gathered_itemsize=0))
        for n in program.graph.nodes
    ]
    without = dataclasses.replace(program.graph, nodes=tuple(nodes))
    bare = dataclasses.replace(program, graph=without)
    for rank, done in enumerate(run_local(mesh, work)):
        expected: dict[str, dict[str, int]] = {axis: {} for axis in mesh.axes}
        for sign, one in ((1, program), (-1, bare)):
            for entry in count(one, rank).traffic:
                sent = expected[entry.axis]
                sent[entry.collective] = sent.get(entry.collective, 0) + sign * entry.bytes
        assert done == {a: {k: n for k, n in s.items() if n} for a, s in expected.items()}

    cost = MeshCost(bundled_cluster("8xH100"), mesh)
    whole = (Replicate(),) * len(mesh.axes)
    took = sum(
        cost.reshard_s(program.graph.values[n.inputs[0]].shape, 4, s.outputs[0], whole)
        for n, s in updates
    )
    assert took > 0
    both = [price(g, program.strategies, mesh, cost) for g in (program.graph, without)]
    assert both[0].step_s - both[1].step_s == pytest.approx(took)
    assert both[0].backward_s == both[1].backward_s
    assert set(both[0].collectives) != set(both[1].collectives)
    layer_of = [0] * len(nodes)
    layers = [
        layer_prices(g, layer_of, program.strategies, cost, lambda _: 8.0)[0]
        for g in (program.graph, without)
    ]
    assert layers[0].seconds("update") - layers[1].seconds("update") == pytest.approx(took)


def test_rules_from_before_there_were_gathers_are_read(traced: TracedModule) -> None:
    rule = next(n.rule for n in traced.graph.nodes if n.op == "update.muon")
    assert OpRule.from_json(rule.to_json()) == rule
    old = {key: value for key, value in rule.to_json().items() if key != "gathered_itemsize"}
    assert OpRule.from_json(old) == dataclasses.replace(rule, gathered_itemsize=0)
