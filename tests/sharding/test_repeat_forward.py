"""Graphs that repeat layers: what is kept, what is done twice, and where."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sharding import Mesh, count, first_name, lower, repeat_forward, strategies
from recipes.plan.layers.layers_of import layers_of
from tests.plan.graphs import mlp


@given(st.integers(1, 5), st.sets(st.integers(0, 4)))
def test_work_and_memory_of_a_chain(num_layers, layers):
    graph = mlp(num_layers)
    layer_of = layers_of(graph)
    wanted = {layer for layer in layers if layer < num_layers}
    repeated, new_layer_of = repeat_forward(graph, layer_of, wanted)
    again = [node for node in repeated.nodes if node.name != first_name(node.name)]
    originals = {node.name: node for node in graph.nodes}
    assert {new_layer_of[repeated.nodes.index(node)] for node in again} <= wanted
    for node in again:
        first = originals[first_name(node.name)]
        assert (node.op, node.rule, node.block) == (first.op, first.rule, first.block)
        assert (node.phase, first.phase) == ("backward", "forward")
    extra = sum(node.rule.flops() for node in again)
    assert repeated.flops() == graph.flops() + extra
    assert kept(repeated, layer_of=new_layer_of, inside=wanted) == 0
    mesh = Mesh.of(a=1)
    before, after = (
        count(lower(g, [strategies(node.rule, mesh)[0] for node in g.nodes], mesh), 0)
        for g in (graph, repeated)
    )
    assert after.saved_bytes <= before.saved_bytes
    assert after.backward_flops == before.backward_flops + extra
    if not wanted:
        assert repeated == graph


def kept(graph, *, layer_of, inside):
    """Values of the layers that are saved though only their own layer reads them."""
    found = 0
    for value in graph.saved:
        layer = layer_of[graph.maker[value]]
        readers = {layer_of[reader] for reader, _ in graph.readers[value]}
        found += layer in inside and readers == {layer}
    return found


def test_a_chain_repeated_whole_keeps_only_what_goes_from_layer_to_layer():
    graph = mlp(4)
    repeated = repeat_forward(graph, layers_of(graph), range(4)).graph
    names = {graph.values[v].name for v in graph.saved}
    again = {repeated.values[v].name for v in repeated.saved}
    assert names == {f"{op}_{layer}" for layer in range(4) for op in ("mm", "relu")} - {"relu_3"}
    assert again == {"relu_0", "relu_1", "relu_2"}


def test_layers_are_asked_for_every_node():
    with pytest.raises(ValueError, match="layer_of"):
        repeat_forward(mlp(1), (0,), {0})
