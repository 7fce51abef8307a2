"""The models of Alpa's experiments, as operations with rules, for any number of rows.

As they were run: projections of queries, keys and values apart, attention as two products with a
softmax between (no fused kernel), an output matrix of its own, GELU. Kernels are those of a
compiler that fuses elementwise operations.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benches.alpa_paper import Model
from blocks.sharding import OpGraph
from recipes.plan.families.static_moe import Layer, StaticMoE, StaticMoEConfig
from recipes.plan.families.wide_resnet import DEPTHS, WideResNet, WideResNetConfig
from recipes.plan.scaled_graph import graphs_by_rows
from recipes.plan.trace import trace


class Attention(nn.Module):
    """Causal attention whose scores are tensors."""

    def __init__(self, config: StaticMoEConfig, seq_len: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        size = config.hidden_size
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))
        mask = torch.full((seq_len, seq_len), -1e4).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, size = x.shape
        shape = (batch, length, self.num_heads, size // self.num_heads)
        q, k, v = (one(x).view(shape).transpose(1, 2) for one in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) * (size // self.num_heads) ** -0.5 + self.mask
        mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, length, size))


class Transformer(StaticMoE):
    """A decoder of Alpa's tables: every second layer a mixture of experts, or none."""

    def __init__(self, config: StaticMoEConfig, seq_len: int, sparse: bool) -> None:
        super().__init__(config)
        layers = [Layer(config, sparse and bool(at % 2)) for at in range(config.num_layers)]
        for layer in layers:
            layer.attention = Attention(config, seq_len)  # type: ignore[assignment]
        self.layers = nn.ModuleList(layers)
        self.positions = None if sparse else nn.Embedding(seq_len, config.hidden_size)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions.weight
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())


def graphs_of(model: Model) -> Callable[[int], OpGraph]:
    """From the rows of a microbatch to the step of a model, traced without weights."""
    return graphs_by_rows(lambda rows: graph_of(model, rows), (2, 4))


def sequences_a_row(model: Model) -> int:
    """Sequences that stay together: experts take groups of tokens."""
    return max(1, model.group_size // model.seq_len) if model.family == "moe" else 1


def graph_of(model: Model, rows: int) -> OpGraph:
    """The step of so many rows, traced without weights."""
    if model.family == "wide_resnet":
        config = WideResNetConfig(DEPTHS[model.num_layers], model.hidden, model.width_factor, 1024)
        images = torch.empty(rows, 3, 224, 224, device="meta")
        labels = torch.empty(rows, dtype=torch.int64, device="meta")
        return trace(lambda: WideResNet(config), (), {"images": images, "labels": labels}).graph
    sparse = model.family == "moe"
    tokens = torch.empty(
        rows * sequences_a_row(model), model.seq_len, dtype=torch.int64, device="meta"
    )
    config = StaticMoEConfig(
        *(model.hidden, model.num_layers, model.num_heads, max(1, model.num_experts)),
        inner_factor=8 if sparse else 4,
        vocab_size=model.vocab_size,
        group_size=model.group_size,
    )
    called = {"tokens": tokens, "labels": tokens}
    return trace(lambda: Transformer(config, model.seq_len, sparse).half(), (), called).graph
