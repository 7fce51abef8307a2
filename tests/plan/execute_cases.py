"""Small modules with the batches they train on, for tests that run plans."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.plan.execute import state_of
from recipes.plan.trace import TracedModule, trace
from tests.plan.test_trace import Transformer

Batch = Mapping[str, Tensor]


class Case(NamedTuple):
    """A module, its trace, batches drawn by seed under the names of the trace's inputs, and how
    to call the module with one."""

    module: nn.Module
    traced: TracedModule
    batch: Callable[[int], Batch]
    call: Callable[[nn.Module, Batch], Tensor]

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers, by name."""
        return {name: one.clone() for name, one in state_of(self.module).items()}


class ConvNet(nn.Module):
    """Convolutions, one of them grouped; batch and group norm; pools."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.groups = nn.GroupNorm(4, 8)
        self.third = nn.Conv2d(8, 12, 1)
        self.head = nn.Linear(12, 6)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        x = F.relu(self.groups(self.second(x)))
        return F.cross_entropy(self.head(self.third(x).mean((2, 3))), labels)


class Ranker(nn.Module):
    """Rows of two tables, a dropout, a layer over both: a small recommender."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(10, 8), nn.Embedding(9, 8)
        self.dropout = nn.Dropout(dropout)
        self.mix, self.head = nn.Linear(16, 12), nn.Linear(12, 1)

    def forward(self, users: Tensor, items: Tensor, clicked: Tensor) -> Tensor:
        both = torch.cat([self.users(users), self.items(items)], -1)
        score = self.head(F.relu(self.mix(self.dropout(both)))).squeeze(-1)
        return F.binary_cross_entropy_with_logits(score, clicked)


class TiedUNet(nn.Module):
    """A skip from the first layer to the last, which share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner, self.norm = nn.Linear(6, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.up = nn.Linear(8, 8, bias=False)
        self.tied = nn.Parameter(torch.randn(8, 8) / 3)

    def forward(self, x: Tensor, goal: Tensor) -> Tensor:
        first = F.gelu(self.down(x) @ self.tied)
        second = self.norm(F.gelu(self.inner(first)))
        return F.mse_loss((self.up(second) + first) @ self.tied, goal)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def transformer(
    dtype: torch.dtype = torch.float64, gradient_dtype: torch.dtype | None = None
) -> Case:
    torch.manual_seed(0)
    module = Transformer().to(dtype)

    def batch(seed: int) -> Batch:
        tokens, labels = torch.randint(32, (2, 4, 6), generator=_generator(seed))
        return {"args.0": tokens, "labels": labels}

    one = batch(0)
    named = {"labels": one["labels"]}
    traced = trace(module, (one["args.0"],), named, gradient_dtype=gradient_dtype)
    return Case(module, traced, batch, lambda m, b: m(b["args.0"], b["labels"]))


def conv_net(dtype: torch.dtype = torch.float64) -> Case:
    torch.manual_seed(0)
    module = ConvNet().to(dtype)

    def batch(seed: int) -> Batch:
        x = torch.randn(4, 4, 8, 8, generator=_generator(seed), dtype=dtype)
        return {"args.0": x, "args.1": torch.randint(6, (4,), generator=_generator(seed))}

    traced = trace(module, tuple(batch(0).values()))
    return Case(module, traced, batch, lambda m, b: m(*b.values()))


def ranker(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> Case:
    torch.manual_seed(0)
    module = Ranker(dropout).to(dtype)

    def batch(seed: int) -> Batch:
        users, items = torch.randint(9, (2, 6), generator=_generator(seed))
        clicked = torch.rand(6, generator=_generator(seed)).round().to(dtype)
        return {"args.0": users, "args.1": items, "args.2": clicked}

    traced = trace(module, tuple(batch(0).values()))
    return Case(module, traced, batch, lambda m, b: m(*b.values()))


def tied_unet(dtype: torch.dtype = torch.float64) -> Case:
    torch.manual_seed(0)
    module = TiedUNet().to(dtype)

    def batch(seed: int) -> Batch:
        both = torch.randn(4, 5, 14, generator=_generator(seed), dtype=dtype)
        return {"args.0": both[..., :6], "args.1": both[..., 6:]}

    traced = trace(module, tuple(batch(0).values()))
    return Case(module, traced, batch, lambda m, b: m(*b.values()))


CASES = {"transformer": transformer, "conv_net": conv_net, "ranker": ranker}
