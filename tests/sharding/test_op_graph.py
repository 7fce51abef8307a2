"""``OpGraph``: its invariants, and the way to JSON and back."""

import dataclasses
import json

import pytest

from blocks.sharding import Factor, OpGraph, OpNode, OpRule, TensorValue


def rows(*shape: int) -> OpRule:
    dims = tuple(range(len(shape)))
    return OpRule(tuple(Factor(f"dim{d}", size) for d, size in enumerate(shape)), (), (dims,))


def small_graph() -> OpGraph:
    """``y = x @ w``, its loss and the update of w."""
    value = lambda name, *shape: TensorValue(name, shape, "float32", 4)  # noqa: E731
    i, j, k = Factor("i", 6), Factor("j", 4), Factor("k", 8)
    total = lambda *factors: tuple(dataclasses.replace(f, kind="sum") for f in factors)  # noqa: E731
    matmul = OpRule((i, j, *total(k)), ((0, 2), (2, 1)), ((0, 1),), ((0,), (1,)), 2)
    loss = OpRule(total(i, j), ((0, 1),), ((),), ((0,),))
    spread = OpRule((i, j), ((0, 1),), ((0, 1),))
    gradient = OpRule((k, j, *total(i)), ((2, 0), (2, 1)), ((0, 1),), ((0,), (1,)), 2)
    same = OpRule((k, j), ((0, 1),), ((0, 1),), ((0,),))
    update = OpRule((k, j), ((0, 1), (0, 1)), ((0, 1),))
    values = (
        value("x", 6, 8), value("w", 8, 4), value("y", 6, 4), value("loss"), value("dy", 6, 4),
        value("dw", 8, 4), value("dw_sum", 8, 4), value("w_new", 8, 4),
    )  # fmt: skip
    nodes = (
        OpNode("x", "input", "input", "forward", (), (0,), rows(6, 8)),
        OpNode("w", "parameter", "parameter", "forward", (), (1,), rows(8, 4)),
        OpNode("mm", "mm", "op", "forward", (0, 1), (2,), matmul),
        OpNode("sum", "sum", "op", "forward", (2,), (3,), loss),
        OpNode("dsum", "cos", "op", "backward", (2,), (4,), spread),
        OpNode("dmm", "mm", "op", "backward", (0, 4), (5,), gradient),
        OpNode("acc", "accumulate", "accumulate", "backward", (5,), (6,), same),
        OpNode("adamw", "update", "update", "update", (1, 6), (7,), update),
    )
    return OpGraph(values, nodes, ((7, 1),))


def test_json_both_ways():
    graph = small_graph()
    assert OpGraph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


def test_what_it_knows():
    graph = small_graph()
    assert graph.flops() == 2 * 2 * 6 * 4 * 8
    assert graph.saved == (2,)
    assert graph.maker[6] == 6
    assert graph.readers[1] == ((2, 1), (7, 0))


def test_broken_graphs_are_refused():
    graph = small_graph()
    nodes = graph.nodes
    with pytest.raises(ValueError, match="inputs of mm: expected values made before"):
        OpGraph(graph.values, (nodes[2], *nodes[:2], *nodes[3:]))
    with pytest.raises(ValueError, match="values: expected all made by a node"):
        OpGraph(graph.values, nodes[:-1])
    with pytest.raises(ValueError, match="returns"):
        dataclasses.replace(graph, returns=((7, 0),))
    wrong = dataclasses.replace(nodes[0], rule=rows(6, 7))
    with pytest.raises(ValueError, match="x in x"):
        OpGraph(graph.values, (wrong, *nodes[1:]))
