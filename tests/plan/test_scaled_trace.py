"""Traces of one row, made of two and four, are what was planned and compute what models compute."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recipes.plan.families import family
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.scaled_trace import scaled_trace
from recipes.plan.model import Call, chains_of, traced_step
from recipes.plan.trace import interpret, trace
from tests.plan.test_families import CAST, SLOW, TINY, assert_reproduces


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
    traced.check_invariants()
    planned = chains_of(given.call, optimizer="adamw")(1)
    assert LayerChain.of(traced.graph).digest() == planned.digest()
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    state = {name: one.detach().clone() for name, one in state.items()}
    got = interpret(traced, state, dict(zip(traced.inputs, inputs.values(), strict=True)))
    output = module(**inputs)
    loss = output if isinstance(output, Tensor) else output.loss
    assert_reproduces(traced, module, loss, got, 1e-5 if name in CAST else 1e-9)


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


def test_numbers_that_do_not_scale_are_refused_and_one_row_is_traced() -> None:
    def call(rows: int) -> tuple[Any, ...]:
        return Rooted(), (torch.ones(rows, 4),), {}

    small, large = trace(*call(2)), trace(*call(4))
    with pytest.raises(ValueError, match="arguments: expected numbers affine in the rows"):
        scaled_trace(small, 2, large, 4, 1)
    assert traced_step(call, 1).fingerprint == trace(*call(1)).fingerprint
