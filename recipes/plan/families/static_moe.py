"""A transformer whose every second layer is a mixture of experts of fixed capacity.

Tokens are routed inside their group; an expert takes at most ``capacity`` tokens of a group, what
is over passes by on the residual. All shapes are fixed, routing is a product with masks.

Reference:
    Lepikhin et al., "GShard", 2020, section 2.2 and algorithm 1 (top-2 gating without its random
    part); Zheng et al., "Alpa", 2022, table 6 (the sizes).
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclasses.dataclass(frozen=True)
class StaticMoEConfig:
    """
    num_layers: of both kinds together; inner_factor: how many times wider the feed-forwards are
        inside; group_size: tokens routed together.
    capacity_factor: how many times its fair share of two choices a token an expert takes.
    """

    hidden_size: int = 768
    num_layers: int = 8
    num_heads: int = 16
    num_experts: int = 8
    inner_factor: int = 8
    vocab_size: int = 32000
    group_size: int = 2048
    capacity_factor: float = 1.0

    @property
    def capacity(self) -> int:
        return max(1, int(2 * self.group_size * self.capacity_factor / self.num_experts))


class Attention(nn.Module):
    def __init__(self, config: StaticMoEConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        size = config.hidden_size
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, size = x.shape
        shape = (batch, length, self.num_heads, size // self.num_heads)
        q, k, v = (one(x).view(shape).transpose(1, 2) for one in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, size))


class FeedForward(nn.Module):
    def __init__(self, config: StaticMoEConfig) -> None:
        super().__init__()
        inner = config.inner_factor * config.hidden_size
        self.up = nn.Linear(config.hidden_size, inner)
        self.down = nn.Linear(inner, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Experts(nn.Module):
    """Top-2 gating and the experts' two matrices."""

    def __init__(self, config: StaticMoEConfig) -> None:
        super().__init__()
        size, count = config.hidden_size, config.num_experts
        inner = config.inner_factor * size
        self.group_size, self.capacity = config.group_size, config.capacity
        self.gate = nn.Linear(size, count, bias=False)
        self.up = nn.Parameter(torch.randn(count, size, inner) / size**0.5)
        self.down = nn.Parameter(torch.randn(count, inner, size) / inner**0.5)

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(-1, self.group_size, x.shape[-1])  # [group, token, channel]
        combine = self.combine(grouped)  # [group, token, expert, slot]
        dispatch = (combine > 0).to(x.dtype)
        taken = torch.einsum("gsec,gsm->egcm", dispatch, grouped)
        inner = F.gelu(torch.einsum("egcm,emh->egch", taken, self.up))
        made = torch.einsum("egch,ehm->egcm", inner, self.down)
        return torch.einsum("gsec,egcm->gsm", combine, made).reshape(x.shape)

    def combine(self, grouped: Tensor) -> Tensor:
        """Weights of the two experts of each token at the slots it has there."""
        scores = F.softmax(self.gate(grouped), dim=-1)
        experts = torch.arange(scores.shape[-1], device=scores.device)
        left, ahead, total = (
            scores,
            torch.zeros_like(scores[:, :1]),
            torch.zeros_like(scores[..., :1]),
        )
        parts = []
        for _ in range(2):
            chosen = (left.argmax(-1, keepdim=True) == experts).to(scores.dtype)
            place = (torch.cumsum(chosen, dim=1) - 1 + ahead) * chosen
            ahead = ahead + chosen.sum(1, keepdim=True)
            left = left.masked_fill(chosen > 0, float("-inf"))
            weight = (scores * chosen).sum(-1, keepdim=True)
            total = total + weight
            slots = torch.arange(self.capacity, device=scores.device)
            at = (place.unsqueeze(-1) == slots).to(scores.dtype) * chosen.unsqueeze(-1)
            parts.append(weight.unsqueeze(-1) * at)
        return (parts[0] + parts[1]) / total.unsqueeze(-1)


class Layer(nn.Module):
    def __init__(self, config: StaticMoEConfig, sparse: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size)
        self.attention = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size)
        self.feed_forward = Experts(config) if sparse else FeedForward(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class StaticMoE(nn.Module):
    """Tokens and labels [batch, sequence] to a cross entropy."""

    def __init__(self, config: StaticMoEConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Layer(config, sparse=bool(at % 2)) for at in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
