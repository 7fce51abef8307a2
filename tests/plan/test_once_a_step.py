"""What goes between stages once a step: which values that are, and what they hold."""

import dataclasses

import pytest

from blocks.sharding import Mesh, OpGraph, OpNode, Shard, Strategy, cut_graph, strategies
from blocks.sharding.op_graph import ADD
from blocks.sharding.stage_graph import RECEIVE, SEND
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.layers_of import layers_of
from recipes.plan.layers.reduced import Reduced
from recipes.plan.search.kept_for_a_step import Kept, kept_for_a_step
from recipes.plan.search.transfers import boundary_bytes
from tests.plan.family_cases import family_case

BATCH, SEQ_LEN, HIDDEN, VOCAB, ITEM = 4, 8, 32, 64, 8
TIED = VOCAB * HIDDEN * ITEM


@pytest.fixture(scope="module")
def graph() -> OpGraph:
    """Of a GPT-2 whose head is its embedding, and two blocks."""
    return family_case("gpt2:tiny").traced.graph


def test_tied_weights_and_their_gradients_are_all_that_goes_once(graph: OpGraph):
    cuts = cut_graph(graph, [min(at, 1) for at in layers_of(graph)])
    once = [
        (cut.graph.values[cut.local[value]].shape, at)
        for at, cut in enumerate(cuts)
        for value, _ in cut.receives
        if value in cut.once
    ]
    assert once == [((VOCAB, HIDDEN), 0), ((VOCAB, HIDDEN), 1)]
    hidden = BATCH * SEQ_LEN * HIDDEN * ITEM
    assert boundary_bytes(LayerChain.of(graph))[1:-1] == [(hidden, hidden)] * 3


def test_sums_that_something_else_reads_are_not_among_them(graph: OpGraph):
    adds = [node for node in graph.nodes if node.op == ADD and node.phase == "backward"]
    (added,) = (node for node in adds if node.outputs[0] in graph.once_a_step)
    assert set(added.inputs) <= graph.once_a_step
    loss = next(n for n in graph.nodes if n.role == "output")
    rule = dataclasses.replace(added.rule, inputs=added.rule.outputs, outputs=(), linear=())
    reader = dataclasses.replace(loss, name="reader", inputs=added.outputs, rule=rule)
    read = dataclasses.replace(graph, nodes=(*graph.nodes, reader))
    assert not {*added.inputs, *added.outputs} & read.once_a_step


@pytest.mark.parametrize(("first", "stop", "owner"), [(0, 2, True), (2, 4, False), (1, 3, None)])
def test_copies_and_sums_are_held_for_the_whole_step(graph: OpGraph, first, stop, owner):
    chain = LayerChain.of(graph)
    reduced, mesh = Reduced.of(chain, first, stop), Mesh.of(x=2)
    chosen = [strategies(node.rule, mesh)[0] for node in reduced.graph.nodes]
    other = Kept(TIED, TIED, TIED) if owner is False else Kept()
    assert kept_for_a_step(reduced, chosen, mesh) == other
    halves = [
        _halved(node, mesh) if node.op in (RECEIVE, SEND) else one
        for node, one in zip(reduced.graph.nodes, chosen, strict=True)
    ]
    half = Kept(TIED / 2, TIED / 2, TIED / 2) if owner is False else Kept()
    assert kept_for_a_step(reduced, halves, mesh) == half


def _halved(node: OpNode, mesh: Mesh) -> Strategy:
    """A value that enters or leaves cut along its first dim."""
    every = strategies(node.rule, mesh)
    return next(s for s in every if (*s.inputs, *s.outputs)[0] == (Shard(0),))
