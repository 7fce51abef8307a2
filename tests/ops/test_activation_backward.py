"""Gradients of the activations: every implementation against torch's in float64."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from blocks.ops import _activation, gelu, gelu_and_mul, relu, silu_and_mul
from tests.numerics import assert_close, assert_like_torch

GATED = {
    "silu": (silu_and_mul, F.silu),
    "gelu": (gelu_and_mul, F.gelu),
    "gelu_tanh": (
        functools.partial(gelu_and_mul, approximate="tanh"),
        functools.partial(F.gelu, approximate="tanh"),
    ),
}
PLAIN = {
    "gelu": (gelu, F.gelu),
    "gelu_tanh": (
        functools.partial(gelu, approximate="tanh"),
        functools.partial(F.gelu, approximate="tanh"),
    ),
    "relu": (relu, F.relu),
}
FAST = [("silu", "native"), ("gelu_tanh", "native"), *((kind, "triton") for kind in GATED)]


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator)).to(dtype)


def gradient(function, x: Tensor, dy: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(function(x), x, dy)[0]


def eager_gated(activation, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate) * up


@pytest.mark.parametrize(("kind", "impl"), FAST)
@given(
    num_rows=st.integers(0, 4),
    hidden=st.sampled_from([0, 1, 15, 16, 17, 70]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_gated_gradients_equal_torchs(
    kind: str, impl: str, num_rows: int, hidden: int, dtype: torch.dtype, seed: int
) -> None:
    function, activation = GATED[kind]
    gate_up = rows(seed, num_rows, 2 * hidden, dtype=dtype)
    dy = rows(seed + 1, num_rows, hidden, dtype=dtype)
    actual = gradient(functools.partial(function, impl=impl), gate_up, dy)
    eager = functools.partial(eager_gated, activation)
    expected = gradient(eager, gate_up.double(), dy.double())
    assert actual.dtype == dtype
    assert_close(actual, expected, slack=2)


@pytest.mark.parametrize("kind", PLAIN)
@given(size=st.sampled_from([0, 1, 5, 1023, 1024, 1025]), seed=st.integers(0, 99))
def test_plain_gradients_equal_torchs(kind: str, size: int, seed: int) -> None:
    function, activation = PLAIN[kind]
    x, dy = rows(seed, size), rows(seed + 1, size)
    if size > 2:
        x[1] = 0.0
    for impl in ("reference", "triton"):
        actual = gradient(functools.partial(function, impl=impl), x, dy)
        assert_close(actual, gradient(activation, x.double(), dy.double()), slack=2)


@pytest.mark.parametrize("kind", GATED)
def test_triton_gradients_in_fp16_are_no_worse_than_torchs(kind: str) -> None:
    function, activation = GATED[kind]
    gate_up, dy = rows(0, 9, 140, dtype=torch.float16), rows(1, 9, 70, dtype=torch.float16)
    eager = functools.partial(eager_gated, activation)
    actual = gradient(functools.partial(function, impl="triton"), gate_up, dy)
    exact = gradient(eager, gate_up.double(), dy.double())
    assert_like_torch(actual, gradient(eager, gate_up, dy), exact, factor=3)


@pytest.mark.parametrize("kind", GATED)
def test_the_references_gradient_is_that_of_the_function(kind: str) -> None:
    function, activation = GATED[kind]
    gate_up = rows(0, 3, 8).double().requires_grad_()
    eager = functools.partial(eager_gated, activation)
    assert torch.autograd.gradcheck(eager, gate_up)
    expected = gradient(eager, gate_up.detach(), rows(1, 3, 4).double())
    actual = gradient(function, gate_up.detach().float(), rows(1, 3, 4))
    assert_close(actual, expected)


@pytest.mark.parametrize(("kind", "impl"), FAST)
def test_far_inputs_have_the_slope_of_a_line(kind: str, impl: str) -> None:
    gate = torch.tensor([-1e30, -200.0, -90.0, 90.0, 200.0, 1e30])
    gate_up = torch.cat((gate, 2 * torch.ones(6)))
    found = gradient(functools.partial(GATED[kind][0], impl=impl), gate_up, torch.ones(6))
    assert_close(found[:6], torch.tensor([0.0, 0.0, 0.0, 2.0, 2.0, 2.0]))
    assert_close(found[9:], gate[3:])
    assert (found[6:9].abs() < 1e-30).all()


@pytest.mark.parametrize(("kind", "impl"), FAST)
def test_not_a_number_stays_where_it_is(kind: str, impl: str) -> None:
    gate_up, dy = rows(2, 4, 40), rows(3, 4, 20)
    gate_up[1, 3] = gate_up[2, 39] = dy[3, 5] = torch.nan
    found = gradient(functools.partial(GATED[kind][0], impl=impl), gate_up, dy)
    places = sorted(map(tuple, found.isnan().nonzero().tolist()))
    assert places == [(1, 3), (1, 23), (2, 19), (3, 5), (3, 25)]


@pytest.mark.parametrize(("kind", "impl"), FAST)
def test_strided_inputs_and_gradients_are_read_as_they_lie(kind: str, impl: str) -> None:
    function = functools.partial(GATED[kind][0], impl=impl)
    wide, dy = rows(3, 5, 64), rows(4, 16, 5).t()
    expected = gradient(function, wide[:, 8:40].contiguous(), dy.contiguous())
    leaf = wide.requires_grad_()
    (actual,) = torch.autograd.grad(function(leaf[:, 8:40]), leaf, dy)
    assert torch.equal(actual[:, 8:40], expected)


@pytest.mark.parametrize("kind", GATED)
@pytest.mark.parametrize("hidden", [16, 32, 37])
def test_a_row_of_several_tiles(kind: str, hidden: int, monkeypatch) -> None:
    monkeypatch.setattr(_activation, "TILE", 16)
    gate_up, dy = rows(0, 3, 2 * hidden), rows(1, 3, hidden)
    function = functools.partial(GATED[kind][0], impl="triton")
    expected = functools.partial(GATED[kind][0], impl="reference")
    assert_close(function(gate_up), expected(gate_up))
    assert_close(gradient(function, gate_up, dy), gradient(expected, gate_up, dy))
    plain = functools.partial(gelu, impl="triton")
    assert_close(gradient(plain, gate_up, gate_up), gradient(gelu, gate_up, gate_up))


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_the_operator_keeps_its_promises(impl: str) -> None:
    x = rows(0, 3, 24).requires_grad_()
    torch.library.opcheck(_activation.ACTIVATION.operator, (x, "silu", True, impl))
    torch.library.opcheck(_activation.ACTIVATION.operator, (x, "gelu_tanh", True, impl))
    torch.library.opcheck(_activation.ACTIVATION.operator, (x, "relu", False, "triton"))
