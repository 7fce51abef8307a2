import inspect
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.ops import moe, route
from blocks.ops.moe import COMBINE, SPREAD
from tests.numerics import assert_close, assert_like_torch

IMPLS = ["torch", "triton"]
ACTIVATIONS = ["silu", "gelu", "gelu_tanh"]


def problem(seed: int, num_tokens: int, num_experts: int, hidden: int, inner: int, dtype):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x = draw(num_tokens, hidden).to(dtype)
    gate_up = (draw(num_experts, 2 * inner, hidden) / hidden**0.5).to(dtype)
    down = (draw(num_experts, hidden, inner) / inner**0.5).to(dtype)
    return x, gate_up, down, 2 * draw(num_tokens, num_experts)


@settings(max_examples=25)
@given(
    num_tokens=st.sampled_from([0, 1, 2, 15, 33]),
    num_experts=st.sampled_from([1, 2, 5, 16]),
    top_k=st.integers(1, 3),
    hidden=st.sampled_from([1, 16, 33]),
    inner=st.sampled_from([1, 16, 40]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    activation=st.sampled_from(ACTIVATIONS),
    impl=st.sampled_from(IMPLS),
    seed=st.integers(0, 99),
)
def test_equals_every_expert_over_every_token(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    hidden: int,
    inner: int,
    dtype,
    activation,
    impl,
    seed: int,
) -> None:
    x, gate_up, down, logits = problem(seed, num_tokens, num_experts, hidden, inner, dtype)
    routing = route(logits, min(top_k, num_experts))
    run = partial(moe, routing=routing, activation=activation)
    exact = run(x.double(), gate_up.double(), down.double(), impl="reference")
    y = run(x, gate_up, down, impl=impl)
    assert_like_torch(y, run(x, gate_up, down, impl="reference"), exact, factor=3)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_same_bits_every_run(impl) -> None:
    x, gate_up, down, logits = problem(0, 20, 6, 16, 24, torch.float32)
    routing = route(logits, 3)
    once = moe(x, gate_up, down, routing, impl=impl)
    assert torch.equal(moe(x, gate_up, down, routing, impl=impl), once)


@pytest.mark.parametrize("impl", IMPLS)
def test_experts_nobody_chose_are_not_read(impl) -> None:
    x, gate_up, down, logits = problem(0, 9, 6, 16, 24, torch.float32)
    logits[:, [1, 4]] = -100.0
    routing = route(logits, 2)
    clean = moe(x, gate_up, down, routing, impl=impl)
    for expert in (1, 4):
        gate_up[expert], down[expert] = torch.nan, torch.nan
    assert torch.equal(moe(x, gate_up, down, routing, impl=impl), clean)


def through_router(x, gate_up, down, logits, *, activation, impl) -> torch.Tensor:
    return moe(x, gate_up, down, route(logits, 2), activation=activation, impl=impl)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_the_reference_in_double_precision(activation) -> None:
    *inputs, logits = problem(0, 4, 3, 4, 3, torch.float64)
    inputs = [t.requires_grad_() for t in (*inputs, logits.double())]
    run = partial(through_router, activation=activation, impl="reference")
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_equal_those_of_the_reference(impl, activation) -> None:
    inputs = [t.requires_grad_() for t in problem(0, 20, 5, 24, 16, torch.float32)]
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(20, 24, generator=generator)
    found = [
        torch.autograd.grad(through_router(*inputs, activation=activation, impl=how), inputs, dy)
        for how in (impl, "reference")
    ]
    for actual, expected in zip(*found, strict=True):
        assert_close(actual, expected, slack=3)


def test_gradients_of_the_rows_sent_and_summed_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=generator).double().requires_grad_() for n in (5, 10))
    routing = route(torch.randn(5, 4, generator=generator).double(), 2)
    places, weights = routing.places, routing.weights.detach().double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: SPREAD(x, places, "torch"), (x,))
    assert torch.autograd.gradcheck(lambda y, w: COMBINE(y, w, places, "torch"), (y, weights))


def test_the_operators_are_registered_whole() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, logits = (torch.randn(s, generator=generator) for s in ((5, 4), (10, 4), (5, 6)))
    routing = route(logits, 2)
    weights = routing.weights.requires_grad_()
    torch.library.opcheck(SPREAD.operator, (x.requires_grad_(), routing.places, "torch"))
    arguments = (y.requires_grad_(), weights, routing.places, "torch")
    torch.library.opcheck(COMBINE.operator, arguments)


def test_misuse_is_refused() -> None:
    bare = inspect.unwrap(moe)
    x, gate_up, down, logits = problem(0, 4, 3, 8, 6, torch.float32)
    routing = route(logits, 2)
    with pytest.raises(ValueError, match=r"gate_up shape: expected \[3, 12, 8\], got \[3, 12, 7\]"):
        bare(x, gate_up[:, :, :7], down, routing)
    with pytest.raises(ValueError, match="gate_up shape: expected an even number"):
        bare(x, gate_up[:, :11], down, routing)
    with pytest.raises(ValueError, match=r"down shape: expected \[3, 8, 6\]"):
        bare(x, gate_up, down[:, :, :5], routing)
    with pytest.raises(ValueError, match=r"routing.places shape: expected \[3, top_k\]"):
        bare(x[:3], gate_up, down, routing)
    with pytest.raises(ValueError, match="activation: expected one of"):
        bare(x, gate_up, down, routing, activation="relu")
    with pytest.raises(TypeError, match="down dtype"):
        bare(x, gate_up, down.half(), routing)
    with pytest.raises(TypeError, match="x dtype"):
        bare(x.int(), gate_up, down, routing)
