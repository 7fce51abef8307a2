"""A traced step computes what the module does, and knows what it is made of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blocks.sharding import OpGraph, cut_graph
from recipes.plan.layers.layers_of import layers_of
from recipes.plan.trace import TracedModule, Untraceable, interpret, trace


class Transformer(nn.Module):
    """Two layers and a language head."""

    def __init__(self, vocab_size: int = 32, width: int = 16, num_heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(Layer(width, num_heads) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocab_size, bias=False)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), labels.flatten())


class Layer(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.mix(self.norm(x)).chunk(3, dim=-1)
        q, k, v = (one.view(batch, length, self.num_heads, -1).transpose(1, 2) for one in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(x)))


def assert_reproduces(
    traced: TracedModule, module: nn.Module, inputs: list[Tensor], loss: Tensor
) -> None:
    """Loss, gradients and changed buffers as the module has them, in float64."""
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: one.detach().clone() for name, one in state.items()}
    got, gradients, buffers = interpret(
        traced, state, dict(zip(traced.inputs, inputs, strict=True))
    )
    del buffers
    loss.backward()
    torch.testing.assert_close(got, loss, rtol=1e-12, atol=1e-12)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-9, atol=1e-12)


def test_a_plain_network() -> None:
    module = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).double()
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    traced = trace(module, (x,), loss=lambda y: y.square().mean())
    assert_reproduces(traced, module, [x], module(x).square().mean())
    linear = next(node for node in traced.graph.nodes if node.name == "0/einsum")
    kinds = [(factor.size, factor.kind) for factor in linear.rule.factors]
    assert kinds == [(2, "parallel"), (3, "parallel"), (16, "parallel"), (8, "sum")]
    assert traced.graph.flops() == 2 * 6 * (2 * 8 * 16 + 3 * 16 * 4)


@pytest.fixture(scope="module")
def transformer() -> tuple[Transformer, Any, TracedModule]:
    torch.manual_seed(0)
    module = Transformer().double()
    tokens = torch.randint(0, 32, (2, 5))
    return module, tokens, trace(module, (tokens,), {"labels": tokens})


def test_a_transformer(transformer) -> None:
    module, tokens, traced = transformer
    traced.check_invariants()
    assert traced.inputs == ("args.0", "labels")
    assert_reproduces(traced, module, [tokens, tokens], module(tokens, tokens))


def test_attention_is_one_operation_each_way(transformer) -> None:
    nodes = [node for node in transformer[2].graph.nodes if "attention" in node.op]
    assert [node.phase for node in nodes] == ["forward"] * 2 + ["backward"] * 2
    assert [node.block for node in nodes] == [0, 1, 1, 0]


def test_everything_can_be_cut_along_the_batch(transformer) -> None:
    graph = transformer[2].graph
    for node in graph.nodes:
        if node.role != "op" or not any(graph.values[v].shape for v in node.outputs):
            continue
        sizes = [factor.size for factor in node.rule.factors if factor.kind != "whole"]
        of_weights = node.inputs and all(graph.values[v].shape[:1] != (2,) for v in node.inputs)
        assert 2 in sizes or of_weights or not node.inputs, node


def test_equal_blocks_are_equal_node_by_node(transformer) -> None:
    traced = transformer[2]
    assert traced.block_kinds == (0, 0)
    first, second = (traced.block_nodes(block) for block in (0, 1))
    assert [(n.op, n.role, n.rule) for n in first] == [(n.op, n.role, n.rule) for n in second]


def test_lines_of_code_are_known(transformer) -> None:
    node = next(n for n in transformer[2].graph.nodes if n.op == "aten.gelu.default")
    assert node.module == "layers.0"
    file, _, line = node.source.rpartition(":")
    assert "F.gelu" in Path(file).read_text().splitlines()[int(line) - 1]


def test_json_both_ways(transformer) -> None:
    graph = transformer[2].graph
    assert OpGraph.from_json(json.loads(json.dumps(graph.to_json()))) == graph


def test_meta_modules_and_factories_give_the_same(transformer) -> None:
    tokens = torch.zeros(2, 5, dtype=torch.int64, device="meta")
    with torch.device("meta"):
        module = Transformer().double()
    for one in (module, lambda: Transformer().double()):
        traced = trace(one, (tokens,), {"labels": tokens})
        assert traced.fingerprint == transformer[2].fingerprint


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if y.sum() > 0:  # depends on values
            y = -y
        return y.sum()


def test_branches_on_values_are_refused_with_their_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        Untraceable, match=r"test_trace.py:\d+, in forward: \"if y.sum\(\) > 0"
    ) as e:
        trace(Branching(4, 4), (torch.randn(2, 4),))
    assert e.value.file == __file__
    assert "torch.where" in str(e.value)
    assert "def forward" not in capfd.readouterr().err  # torch's graph, a hundred lines or more


class Unregistered(nn.Module):
    """Reads a tensor that ``state_dict`` knows nothing of."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = torch.arange(4.0)
        self.others = [self.linear.weight] if inside else []

    def forward(self, x: Tensor) -> Tensor:
        return (self.linear(x) * (self.others[0].sum(0) if self.others else self.scale)).sum()


@pytest.mark.parametrize(
    ("inside", "named"), [(False, "the attribute 0.scale"), (True, "one in a list or dict")]
)
def test_tensors_that_are_not_registered_are_refused_by_name(inside: bool, named: str) -> None:
    with pytest.raises(ValueError, match=rf"got {named}; keep it with register_buffer"):
        trace(nn.Sequential(Unregistered(inside)), (torch.ones(2, 4),))


def test_buffers_need_not_be_persistent() -> None:
    module = Unregistered(inside=False)
    scale = module.__dict__.pop("scale")
    module.register_buffer("scale", scale, persistent=False)
    traced = trace(nn.Sequential(module), (torch.ones(2, 4),))
    assert [node.name for node in traced.graph.nodes if node.op == "buffer"] == ["0.scale"]


class Told(nn.Linear):
    def forward(self, x: Tensor, times: int, scale: float, mode: str, mask: Any = None) -> Tensor:
        for _ in range(times):
            x = super().forward(x) * scale
        return x.square().sum() if mode == "sum" and mask is None else x.mean()


def test_arguments_that_are_no_tensors_are_constants() -> None:
    module = Told(4, 4).double()
    x = torch.randn(2, 4, dtype=torch.float64)
    traced = trace(module, (x, 2), {"scale": 0.5, "mode": "sum", "mask": None})
    assert traced.inputs == ("args.0",)
    assert_reproduces(traced, module, [x], module(x, 2, 0.5, "sum"))


def test_recurrent_layers_are_products_that_every_device_has(
    recwarn: pytest.WarningsRecorder,
) -> None:
    module = nn.LSTM(4, 3, batch_first=True).double()
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    traced = trace(module, (x,), loss=lambda found: found[0].square().sum())
    assert not recwarn.list
    assert not any("mkldnn" in node.op for node in traced.graph.nodes)
    assert_reproduces(traced, module, [x], module(x)[0].square().sum())
    layers = layers_of(traced.graph)
    assert len(cut_graph(traced.graph, layers)) == max(layers) + 1 > 1  # gradients go down


def test_what_is_no_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="loss: expected a floating point scalar"):
        trace(nn.Linear(4, 4), (torch.randn(2, 4),))
    with pytest.raises(TypeError, match="a function that makes one"):
        trace(3)  # pyright: ignore
