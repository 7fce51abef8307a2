"""The models of Alpa's experiments, as operations with rules, for any number of rows.

As they were run: queries, keys and values of one matrix, attention as two products with a softmax
between (no fused kernel), norms behind the residuals, an output matrix of its own, experts in the
first of every two layers with ReLU inside. Kernels are those of a compiler that fuses elementwise
operations.

Reference: Zheng et al., "Alpa", 2022, section 8 and the models of its public code (GPT and
mixtures of experts are made of its BERT's layers).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benches.alpa_paper import Model
from blocks.sharding import OpGraph
from recipes.plan.families.static_moe import Experts, FeedForward, StaticMoEConfig
from recipes.plan.families.wide_resnet import DEPTHS, WideResNet, WideResNetConfig
from recipes.plan.layers.scaled_graph import graphs_by_rows
from recipes.plan.trace import trace


class Attention(nn.Module):
    """Causal attention whose scores are tensors."""

    def __init__(self, config: StaticMoEConfig, seq_len: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        size = config.hidden_size
        self.combined, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        mask = torch.full((seq_len, seq_len), -1e4).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, size = x.shape
        shape = (batch, length, self.num_heads, size // self.num_heads, 3)
        q, k, v = (one.transpose(1, 2) for one in self.combined(x).view(shape).unbind(-1))
        scores = q @ k.transpose(-1, -2) * (size // self.num_heads) ** -0.5 + self.mask
        mixed = scores.softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(batch, length, size))


class ReluExperts(Experts):
    """Experts whose inner activation is a ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(-1, self.group_size, x.shape[-1])  # [group, token, channel]
        combine = self.combine(grouped)  # [group, token, expert, slot]
        dispatch = (combine > 0).to(x.dtype)
        taken = torch.einsum("gsec,gsm->egcm", dispatch, grouped)
        inner = F.relu(torch.einsum("egcm,emh->egch", taken, self.up))
        made = torch.einsum("egch,ehm->egcm", inner, self.down)
        return torch.einsum("gsec,egcm->gsm", combine, made).reshape(x.shape)


class Layer(nn.Module):
    """Attention and what follows it, each with a norm behind its residual."""

    def __init__(self, config: StaticMoEConfig, seq_len: int, sparse: bool) -> None:
        super().__init__()
        self.attention = Attention(config, seq_len)
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.feed_forward = ReluExperts(config) if sparse else FeedForward(config)
        self.norm2 = nn.LayerNorm(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.feed_forward(x))


class Transformer(nn.Module):
    """A decoder of Alpa's tables: the first of every two layers a mixture of experts, or none."""

    def __init__(self, config: StaticMoEConfig, seq_len: int, sparse: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(seq_len, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, seq_len, sparse and at % 2 == 0) for at in range(config.num_layers)
        )
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.norm(self.embed(tokens) + self.positions.weight)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(x)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


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
