"""A graph cut into stages: every node once, everything read is made or received."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sharding import OpGraph, OpNode, OpRule, cut_graph
from blocks.sharding.stage_graph import RECEIVE, SEND
from tests.plan.graphs import mlp
from tests.sharding.test_op_graph import small_graph


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_stages_hold_every_node_once_and_talk_in_order(num_layers, num_stages, seed):
    graph = mlp(num_layers)
    drawn = random.Random(seed)
    cuts = sorted(drawn.choices(range(num_layers + 1), k=num_stages - 1))
    stage_of = [sum(max(node.block, 0) >= cut for cut in cuts) for node in graph.nodes]
    stages = cut_graph(graph, stage_of)
    held = [at for stage in stages for at in stage.nodes if at >= 0]
    shared = {at for at, node in enumerate(graph.nodes) if node.role == "input"}
    once = [at for at in held if at not in shared]
    assert sorted(once) == [at for at in range(len(graph.nodes)) if at not in shared]
    sent = {(v, source, to) for source, s in enumerate(stages) for v, tos in s.sends for to in tos}
    received = {(v, source, to) for to, s in enumerate(stages) for v, source in s.receives}
    assert sent == received
    assert sum(stage.graph.flops() for stage in stages) == graph.flops()
    for stage in stages:
        for here, whole in zip(stage.graph.values, stage.values, strict=True):
            assert here == graph.values[whole]


def test_one_stage_is_the_graph():
    graph = mlp(3)
    (only,) = cut_graph(graph, [0] * len(graph.nodes))
    assert only.graph == graph
    assert (only.receives, only.sends) == ((), ())


def test_ends_take_any_placement_but_sums():
    first, second = cut_graph(mlp(2), [max(node.block, 0) for node in mlp(2).nodes])
    ends = [
        node for node in (*first.graph.nodes, *second.graph.nodes) if node.op in (RECEIVE, SEND)
    ]
    assert [(node.op, node.role, node.phase) for node in ends] == [
        (SEND, "output", "forward"),
        (RECEIVE, "input", "backward"),
        (RECEIVE, "input", "forward"),
        (SEND, "output", "backward"),
    ]
    assert all(not node.rule.linear for node in ends)


def test_what_inputs_alone_make_is_made_where_it_is_read():
    graph = small_graph()
    value, node = graph.values[0], graph.nodes[0]
    rule = OpRule(node.rule.factors, ((0, 1),), ((0, 1),))
    cos = OpNode("cos", "cos", "op", "forward", (0,), (1,), rule)
    ends = [
        OpNode(
            f"out{i}", "output", "output", "forward", (1,), (), OpRule(rule.factors, ((0, 1),), ())
        )
        for i in (0, 1)
    ]
    two = OpGraph((value, value.__class__("cos", value.shape, value.dtype, 4)), (node, cos, *ends))
    stages = cut_graph(two, [0, 0, 0, 1])
    assert [[n.name for n in stage.graph.nodes] for stage in stages] == [
        ["x", "cos", "out0"],
        ["x", "cos", "out1"],
    ]
    assert not any(stage.receives or stage.sends for stage in stages)


def test_data_that_runs_the_wrong_way_is_refused():
    graph = mlp(2)
    stage_of = [1 - max(node.block, 0) for node in graph.nodes]
    with pytest.raises(ValueError, match="expected a later stage than 1, got 0"):
        cut_graph(graph, stage_of)
    moved = [0 if node.phase == "update" else max(node.block, 0) for node in graph.nodes]
    with pytest.raises(ValueError, match=r"stage of .*: expected"):
        cut_graph(graph, moved)
