"""Layers of a model: found, named alike where they are alike, taken apart and put together."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from blocks.sharding import OpGraph, cut_graph
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.compose import compose
from recipes.plan.layers.layers_of import layers_of
from recipes.plan.trace import trace
from tests.plan.graphs import mlp


def shape_of(graph: OpGraph) -> list[tuple]:
    """All that matters but names and order."""
    readers = [tuple(sorted(graph.nodes[n].op for n, _ in r)) for r in graph.readers]
    return sorted(
        (n.op, n.role, n.phase, str(n.rule), str([readers[v] for v in n.outputs]))
        for n in graph.nodes
    )


@given(st.integers(1, 6))
def test_layers_of_blocks(num_layers):
    graph = mlp(num_layers)
    found = layers_of(graph)
    for node, layer in zip(graph.nodes, found, strict=True):
        if node.block >= 0 and node.op != "ones":  # that one is made wherever it is read
            assert layer == node.block


@given(st.integers(2, 7))
def test_composed_whole_is_the_graph(num_layers):
    graph = mlp(num_layers)
    chain = LayerChain.of(graph)
    again, origins = compose(chain, range(num_layers))
    assert shape_of(again) == shape_of(graph)
    assert again.flops() == graph.flops()
    assert len(origins) == len(again.nodes)


@given(st.integers(4, 9))
def test_a_short_trace_stands_for_a_deep_model(num_layers):
    short = LayerChain.of(mlp(4), num_layers=num_layers)
    deep = LayerChain.of(mlp(num_layers))
    assert short.digest() == deep.digest()
    graph, _ = compose(short, range(num_layers))
    assert shape_of(graph) == shape_of(mlp(num_layers))
    for layer in range(num_layers):
        nodes = [n for n, one in enumerate(deep.layers[layer].graph.nodes) if one.block >= 0]
        assert [short.name(layer, n) for n in nodes] == [deep.name(layer, n) for n in nodes]
        assert f"layers.{layer}.weight" in {short.name(layer, n) for n in nodes}


def test_equal_layers_are_of_one_kind_and_have_the_same_names():
    chain = LayerChain.of(mlp(5))
    assert (
        len(set(chain.kinds)) == 3
    )  # the first needs no gradient of its input; the last has the loss
    assert len(set(chain.names[1:4])) == 1
    assert "layers.*.weight" in chain.names[1]
    assert all(len(set(names)) == len(names) for names in chain.names)


@pytest.mark.parametrize("longest", [1, 2, 3])
def test_reduced_chains_stand_for_every_layer_once(longest):
    chain = LayerChain.of(mlp(9))
    reduced = chain.reduced(0, 9, longest)
    assert [layer for layers in reduced for layer in layers] == list(range(9))
    assert len(reduced) == 2 + longest
    assert chain.reduced(2, 4) == ((2,), (3,))


def test_a_part_receives_what_it_does_not_make():
    graph, _ = compose(LayerChain.of(mlp(6)), [2, 3])
    assert [n.op for n in graph.nodes if n.role == "input"] == ["receive", "receive"]
    assert [n.op for n in graph.nodes if n.role == "output"] == ["send", "send"]


def test_the_digest_tells_models_apart():
    chain = LayerChain.of(mlp(4))
    assert chain.digest() == LayerChain.of(mlp(4, batch=2)).digest()
    assert chain.digest() != LayerChain.of(mlp(4, width=8)).digest()
    assert chain.digest() != dataclasses.replace(chain, sequence=(0, 1, 1, 2, 3)).digest()


def test_too_few_repeated_layers_are_refused():
    with pytest.raises(ValueError, match="trace two repeated blocks"):
        LayerChain.of(mlp(3), num_layers=9)


class Residual(nn.Module):
    """Blocks that are added up outside of themselves, and something that all of them read."""

    def __init__(self, num_blocks: int, scale: float) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(num_blocks)
        )
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = all_read = self.first(x) * 3
        for block in self.blocks:
            x = x + self.scale * block(x * all_read)
        return self.last(x).square().mean()


class Inside(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inside(x)


def residual(num_blocks: int) -> OpGraph:
    module = Inside(Residual(num_blocks, 0.5))
    return trace(module, (torch.rand(2, 4),), {}, optimizer="adamw").graph


def test_what_is_added_outside_of_a_block_is_of_its_layer():
    graph = residual(5)
    chain = LayerChain.of(graph)
    assert chain.num_layers == 7  # not one more for what is added behind every block
    assert len(set(chain.kinds[2:4])) == 1


def test_what_all_blocks_read_has_its_gradient_added_up_on_the_way():
    short, deep = LayerChain.of(residual(5), num_layers=9), LayerChain.of(residual(7))
    assert short.digest() == deep.digest()  # whatever the depth, the first layer does the same
    assert {len(layer.receives) for layer in deep.layers[2:6]} == {6}


def test_the_ends_of_a_part_are_those_of_the_stage():
    graph = residual(4)
    layer_of = layers_of(graph)
    chain = LayerChain.of(graph, layer_of)
    for first, stop in itertools.combinations(range(chain.num_layers + 1), 2):
        stages = [(layer >= first) + (layer >= stop) for layer in layer_of]
        cut = cut_graph(graph, [stage - (first == 0) for stage in stages])[first > 0]
        ends = sorted(n.name for n in cut.graph.nodes if n.op in ("send", "receive"))
        part, _ = compose(chain, range(first, stop))
        found = [n.name.partition("@")[2] for n in part.nodes if n.op in ("send", "receive")]
        assert sorted(found) == ends, (first, stop)
