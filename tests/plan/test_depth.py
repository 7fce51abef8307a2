"""Deep models traced from four of their blocks are what they are when traced whole."""

import dataclasses
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.plan.families import family
from recipes.plan.families.family import _FAMILIES
from recipes.plan.families.static_moe import StaticMoE, StaticMoEConfig
from recipes.plan.families.wide_resnet import WideResNet, WideResNetConfig
from recipes.plan.trace import interpret, trace
from recipes.plan.trace.depth import Shortened, find_run
from recipes.plan.trace.repeated_blocks import BlockList, find_block_lists
from tests.plan.reproduced import assert_reproduces


class Block(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.up = nn.Linear(8, inner)
        self.down = nn.Linear(inner, 8)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x + self.down(F.relu(self.up(self.norm(x)))) * scale


class Deep(nn.Module):
    """Blocks that read what the one before made and a tensor that all share."""

    def __init__(self, *inner: int) -> None:
        super().__init__()
        self.scale = nn.Linear(8, 8)
        self.layers = nn.ModuleList(Block(size) for size in inner or (6, *[12] * 7))

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.sigmoid(self.scale(x))
        for layer in self.layers:
            x = layer(x, scale)
        return x.square().mean()


class Tapped(Deep):
    """All layers' outputs are read at the end."""

    def forward(self, x: Tensor) -> Tensor:
        taken = [x]
        for layer in self.layers:
            taken.append(layer(taken[-1], x))
        return torch.stack(taken).square().mean()


class Counted(Deep):
    """The number of layers is part of what is computed."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / len(self.layers)


def both(make, inputs):
    return trace(make, (), inputs), trace(make, (), inputs, whole=True)


def rows() -> dict[str, Tensor]:
    return {"x": torch.empty(4, 8, device="meta")}


def assert_same(shallow, whole) -> None:
    shallow.check_invariants()
    assert shallow.graph == whole.graph
    assert shallow.fingerprint == whole.fingerprint
    assert shallow.block_kinds == whole.block_kinds
    one, two = (
        [str(n.target) for n in traced.graph_module.graph.nodes if n.op == "call_function"]
        for traced in (shallow, whole)
    )
    assert one == two


def test_equal_layers(caplog) -> None:
    with caplog.at_level(logging.INFO, "recipes.plan.trace"):
        assert_same(*both(Deep, rows()))
    assert not caplog.records, "copied, and not traced whole after all"


def test_layers_of_two_kinds_in_turn(caplog) -> None:
    with caplog.at_level(logging.INFO, "recipes.plan.trace"):
        assert_same(*both(lambda: Deep(*(6, 12) * 6, 10), rows()))
    assert not caplog.records


def test_a_deep_graph_runs() -> None:
    torch.manual_seed(0)
    module = Deep().double()
    x = torch.randn(4, 8, dtype=torch.float64)
    traced = trace(module, (x,))
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: one.detach().clone() for name, one in state.items()}
    got = interpret(traced, state, {"args.0": x})
    assert_reproduces(traced, module, module(x), got, 1e-9)


@pytest.mark.nightly
def test_experts_in_every_second_layer(caplog) -> None:
    config = StaticMoEConfig(16, 11, 2, 4, 2, 32, 6, 1.0)
    tokens = torch.empty(2, 6, dtype=torch.int64, device="meta")
    with caplog.at_level(logging.INFO, "recipes.plan.trace"):
        assert_same(*both(lambda: StaticMoE(config), {"tokens": tokens, "labels": tokens}))
    assert not caplog.records


@pytest.mark.nightly
def test_several_lists_with_buffers() -> None:
    config = WideResNetConfig((6, 7), 8, 2, 12)
    images = torch.empty(4, 3, 32, 32, device="meta")
    labels = torch.empty(4, dtype=torch.int64, device="meta")
    assert_same(*both(lambda: WideResNet(config), {"images": images, "labels": labels}))


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["llama", "bert", "gpt2", "mixtral", "t5", "mamba2"])
def test_transformers_models(name: str, caplog) -> None:
    fields, build = _FAMILIES[name]
    depth = {"gpt2": "n_layer", "t5": "num_layers"}.get(name, "num_hidden_layers")
    model = build(f"{name}:tiny", {**fields["tiny"], depth: 7})
    with caplog.at_level(logging.INFO, "recipes.plan.trace"):
        assert_same(*both(model.make, model.inputs()))
    assert not caplog.records


@pytest.mark.parametrize("kind", [Tapped, Counted])
def test_what_depends_on_every_layer_is_traced_whole(kind, caplog) -> None:
    with caplog.at_level(logging.INFO, "recipes.plan.trace"):
        assert_same(*both(kind, rows()))
    assert "every layer is traced" in caplog.text


def test_the_module_given_is_left_alone() -> None:
    module = Deep()
    before = {name: (id(p), p.device) for name, p in module.named_parameters()}
    trace(module, (), rows())
    assert before == {name: (id(p), p.device) for name, p in module.named_parameters()}
    assert len(module.layers) == 8


def test_runs() -> None:
    def run(*kinds: int) -> Shortened | None:
        return find_run(BlockList("h", tuple(map(str, range(len(kinds)))), kinds))

    assert run(0, 0, 0, 0) is None
    assert run(0, 0, 0, 0, 0) == Shortened("h", 0, 1, 5)
    assert run(1, 0, 0, 0, 0, 0, 2) == Shortened("h", 1, 1, 5)
    assert run(*(0, 1) * 6) == Shortened("h", 0, 2, 6)
    assert run(*range(9)) is None
    every = dataclasses.replace(Shortened("h", 1, 2, 9))
    assert [every.unit_of(b) for b in range(11)] == [None, 0, 0, 1, 1, 2, 2, 3, 3, None, None]
    assert every.name_of(9, 0) == 9 + 2 * 5
    assert every.name_of(5, 7) == 1 + 2 * 7


def test_block_lists() -> None:
    with torch.device("meta"):
        (only,) = find_block_lists(family("gpt2:350m").make())
        assert find_block_lists(family("dlrm:base").make()) == ()
    assert only.path == "transformer.h"
    assert only.paths[23] == "transformer.h.23"
    assert set(only.kinds) == {0}
