"""Traces of one row, made of two and four, are what was planned and compute what models compute."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recipes.plan.families import family
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.scaled_trace import scaled_trace
from recipes.plan.model import Call, chains_of, traced_step
from recipes.plan.trace import trace
from tests.plan.family_cases import TINY
from tests.plan.reproduced import SLOW, check_trace


class Family:
    """The smallest model of one, and what it is called with for so many rows."""

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self._family = family(name)
        self.module = self._family.make().double()

    def inputs(self, rows: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(rows)
        return self._family.inputs(rows, generator=generator, dtype=torch.float64)

    def call(self, rows: int) -> Call:
        return self.module, (), self.inputs(rows)


def check(name: str) -> None:
    given = Family(name)
    module, inputs = given.module, given.inputs(1)
    traced = traced_step(given.call, 1)
    planned = chains_of(given.call, optimizer="adamw")(1)
    assert LayerChain.of(traced.graph).digest() == planned.digest()
    check_trace(name, traced, module, inputs)


@pytest.mark.parametrize("name", [name for name in TINY if name not in SLOW])
def test_one_row_is_computed_as_it_is_planned(name: str) -> None:
    check(name)


@pytest.mark.nightly
@pytest.mark.parametrize("name", SLOW)
def test_one_row_is_computed_as_it_is_planned_slowly(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", ["mlp:tiny", "gpt2:tiny", "unet:tiny"])
@pytest.mark.parametrize("rows", [3, 8])
def test_other_rows_are_those_of_their_own_trace(name: str, rows: int) -> None:
    given = Family(name)
    small, large, own = (trace(*given.call(some)) for some in (2, 4, rows))
    made = scaled_trace(small, 2, large, 4, rows)
    assert made.fingerprint == own.fingerprint
    nodes = zip(made.graph_module.graph.nodes, own.graph_module.graph.nodes, strict=True)
    for one, other in nodes:
        assert (one.name, repr(one.args), repr(one.kwargs)) == (
            *(other.name, repr(other.args), repr(other.kwargs)),
        )


class Rooted(nn.Module):
    """Divides by the root of its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).sum() / (x.shape[0] + 1) ** 0.5


def rooted(rows: int) -> tuple[Any, ...]:
    return Rooted(), (torch.ones(rows, 4),), {}


def test_numbers_that_do_not_scale_are_refused() -> None:
    with pytest.raises(ValueError, match="arguments: expected numbers affine in the rows"):
        scaled_trace(trace(*rooted(2)), 2, trace(*rooted(4)), 4, 1)
    with pytest.raises(ValueError, match="plan microbatches of two rows or more"):
        traced_step(rooted, 1)


class Squared(nn.Module):
    """Every row with every other."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        return y.repeat(x.shape[0], 1).square().sum()


def test_one_row_is_traced_where_it_was_planned_so() -> None:
    def call(rows: int) -> tuple[Any, ...]:
        return Squared(), (torch.ones(rows, 4),), {}

    planned = chains_of(call, optimizer="adamw")(1)
    assert LayerChain.of(traced_step(call, 1).graph).digest() == planned.digest()
