"""Programs: lowered from random strategies, they keep their invariants and count what they say."""

import dataclasses
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sharding import (
    Mesh,
    OpGraph,
    Shard,
    ShardingSpec,
    Strategy,
    plan_reshard,
    strategies,
    strategy_of,
)
from blocks.sharding.program import Compute, Free, Replace, Reshard, count, lower
from blocks.sharding.program.traffic import step_bytes
from tests.plan.graphs import mlp

MESHES = st.sampled_from([Mesh.of(a=1), Mesh.of(a=2), Mesh.of(a=3), Mesh.of(a=2, b=2)])


def chosen_at_random(graph: OpGraph, mesh: Mesh, seed: int) -> list[Strategy]:
    draw = random.Random(seed)
    return [draw.choice(strategies(node.rule, mesh)) for node in graph.nodes]


@given(MESHES, st.integers(1, 3), st.integers(0, 10**6))
def test_any_strategies_make_a_program(mesh, num_layers, seed):
    graph = mlp(num_layers)
    chosen = chosen_at_random(graph, mesh, seed)
    program = lower(graph, chosen, mesh)
    program.check_invariants()
    computed = [i.node for p in ("forward", "backward", "update") for i in program.phase(p)
                if isinstance(i, Compute)]  # fmt: skip
    ops = [at for at, node in enumerate(graph.nodes) if node.role in ("op", "accumulate", "update")]
    assert sorted(computed) == ops
    for phase in ("forward", "backward", "update"):
        copies = [(i.value, i.target) for i in program.phase(phase) if isinstance(i, Reshard)]
        assert len(copies) == len(set(copies)), "resharded twice in a phase"
        for instruction in program.phase(phase):
            if isinstance(instruction, Compute):
                strategy = chosen[instruction.node]
                found = tuple(program.placements_of[name] for name in instruction.inputs)
                assert found == strategy.inputs


def data_parallel(graph: OpGraph, mesh: Mesh, *, sharded: bool) -> list[Strategy]:
    """Batch over the one axis; parameters whole, or in shards between their uses (ZeRO-3)."""
    found = []
    for node in graph.nodes:
        names = [factor.name for factor in node.rule.factors]
        if node.role in ("parameter", "update"):
            choice = 0 if sharded else -1
        elif node.role == "accumulate":
            choice = 0 if sharded else -2
        elif node.role == "output":
            choice = -1
        else:
            choice = names.index("batch")
        found.append(strategy_of(node.rule, (choice,)))
    return found


def test_data_parallel_reduces_each_gradient_once_a_step():
    mesh, graph = Mesh.of(data=4), mlp(3)
    counts = count(lower(graph, data_parallel(graph, mesh, sharded=False), mesh), 0)
    weight = 16 * 16 * 4
    assert counts.num_collectives("forward", "backward") == {"all_reduce": 1}, "of the loss"
    assert counts.collective_bytes("update") == {"all_reduce": 3 * 2 * 3 * weight // 4}
    assert counts.forward_flops == 3 * 2 * 2 * 16 * 16
    assert counts.backward_flops == (3 + 2) * 2 * 2 * 16 * 16
    assert counts.parameter_bytes == counts.gradient_bytes == 3 * weight
    assert counts.moment_bytes == 2 * 3 * weight


def test_sharded_parameters_are_gathered_for_each_pass_and_gradients_scattered():
    mesh, graph = Mesh.of(data=4), mlp(3)
    counts = count(lower(graph, data_parallel(graph, mesh, sharded=True), mesh), 0)
    part = 16 * 16
    assert counts.collective_bytes("forward")["all_gather"] == 3 * 3 * part
    assert counts.collective_bytes("backward")["all_gather"] == 2 * 3 * part
    assert counts.collective_bytes("backward")["reduce_scatter"] == 3 * 3 * part
    assert counts.collective_bytes("update") == {}
    assert counts.parameter_bytes == counts.gradient_bytes == 3 * part
    assert counts.collective_bytes(num_microbatches=5)["reduce_scatter"] == 5 * 3 * 3 * part


def test_what_is_saved_is_what_the_graph_says():
    mesh, graph = Mesh.of(data=1), mlp(2)
    program = lower(graph, [strategies(node.rule, mesh)[0] for node in graph.nodes], mesh)
    assert set(program.saved) == {"x", *(graph.values[value].name for value in graph.saved)}
    counts = count(program, 0)
    assert counts.saved_bytes == 4 * 8 * 16 * len(program.saved)
    assert counts.peak_bytes(3) == counts.peak_bytes(1) + 2 * counts.saved_bytes
    kinds = [type(i) for i in program.update]
    assert kinds == [Compute, Free, Replace, Free] * 2
    assert "Mesh(data=1)" in str(program)
    assert "peak" in str(counts)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(2, 4), st.integers(0, 3))
def test_no_rank_sends_more_than_the_first(rows, columns, size, seed):
    mesh = Mesh.of(a=size, b=2)
    draw = random.Random(seed)
    source, target = (
        ShardingSpec.of(mesh, a=draw.choice([Shard(0), Shard(1)]), b=draw.choice([Shard(0)]))
        for _ in range(2)
    )
    for step in plan_reshard(source, target):
        sent = [step_bytes(step, (rows, columns), 4, rank) for rank in mesh.ranks]
        assert max(sent) <= step.bytes((rows, columns), 4)
        if rows % (2 * size) == 0 and columns % (2 * size) == 0:
            assert set(sent) == {step.bytes((rows, columns), 4)}


def test_strategies_that_do_not_fit_are_refused():
    mesh, graph = Mesh.of(a=2), mlp(1)
    chosen = chosen_at_random(graph, mesh, 0)
    with pytest.raises(ValueError, match="one a node"):
        lower(graph, chosen[1:], mesh)
    with pytest.raises(ValueError, match="tensors of the strategy of x"):
        lower(graph, [chosen[2], *chosen[1:]], mesh)
    with pytest.raises(ValueError, match="choices of x"):
        lower(graph, chosen, Mesh.of(a=2, b=1))


def test_a_broken_program_is_noticed():
    mesh, graph = Mesh.of(a=2), mlp(1)
    program = lower(graph, chosen_at_random(graph, mesh, 0), mesh)
    broken = dataclasses.replace(program, forward=program.forward[1:])
    with pytest.raises(AssertionError):
        broken.check_invariants()
