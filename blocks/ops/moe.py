"""A mixture of gated MLPs over routed tokens."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from blocks import _checks
from blocks._autograd import Operation, must_trace
from blocks._impl import Impl
from blocks._work import Work
from blocks.ops import _expert_launch, reference
from blocks.ops.activation import gelu_and_mul, silu_and_mul
from blocks.ops.grouped_linear import choose_grouped, grouped_linear, run
from blocks.ops.routing import Routing

Activation = Literal["silu", "gelu", "gelu_tanh"]


@_checks.expects_tensors
def moe(
    x: Float[Tensor, "num_tokens hidden_size"],
    gate_up: Float[Tensor, "num_experts two_inner hidden_size"],
    down: Float[Tensor, "num_experts hidden_size inner"],
    routing: Routing,
    *,
    activation: Activation = "silu",
    impl: Impl | None = None,
) -> Float[Tensor, "num_tokens hidden_size"]:
    """Every token through its experts' gated MLPs, weighted and summed in fp32.

    ``sum over e of weight * down[e] @ (act(gate) * up)`` with ``[gate, up] = gate_up[e] @ x``: the
    rows are gathered by expert, multiplied group by group, and each token then adds up its own
    results in the order of its choices: the same bits every run, without atomics. Experts nobody
    chose are not read.

    Args:
        x: fp32, bf16, fp16 or fp64.
        gate_up: gate rows first, in x's dtype.
        down: in x's dtype.
        routing: from ``route`` for these tokens and experts.
        activation: of the gate.
        impl: None for the fastest where the tensors live.

    Raises:
        ValueError, TypeError: shapes or dtypes that disagree, an unknown activation.

    Reference: Shazeer et al. 2017, Outrageously large neural networks; Jiang et al. 2024, Mixtral
    of Experts, 2.1; Gale et al. 2023, MegaBlocks.
    """
    _check(x, gate_up, down, routing, activation)
    weights, places, offsets = routing.weights, routing.places, routing.offsets
    chosen = choose_grouped(impl, x, gate_up, down, weights)
    if chosen == "reference":
        return reference.moe(x, gate_up, down, routing, activation=activation)
    if must_trace(x, gate_up, down, weights):
        rows = SPREAD(x, places, chosen)
        inner = _activate(grouped_linear(rows, gate_up, offsets, impl=chosen), activation)
        y = grouped_linear(inner, down, offsets, impl=chosen)
        return COMBINE(y, weights, places, chosen)
    inner = _activate(run(x, gate_up, offsets, chosen, routing.tokens), activation)
    return _combine(run(inner, down, offsets, chosen), weights, places, chosen)


def moe_work(
    num_tokens: int,
    top_k: int,
    hidden_size: int,
    inner: int,
    num_experts: int,
    dtype_bytes: int,
) -> Work:
    """Work of ``moe`` where ``num_experts`` experts are chosen by some token."""
    products = 3 * hidden_size * inner
    elements = num_experts * products + 2 * num_tokens * hidden_size
    return Work(2 * num_tokens * top_k * products, elements * dtype_bytes)


def _activate(gate_up: Tensor, activation: str) -> Tensor:
    if activation == "silu":
        return silu_and_mul(gate_up)
    return gelu_and_mul(gate_up, approximate="none" if activation == "gelu" else "tanh")


def _spread(x: Tensor, weights: Tensor | None, places: Tensor, impl: str) -> Tensor:
    """Row places[t, i] of the result is x[t], times weights[t, i] where there are weights."""
    if impl == "triton":
        return _expert_launch.spread(x, weights, places)
    rows = repeat(x, "token hidden -> token choice hidden", choice=places.shape[1])
    if weights is not None:
        rows = (reference.wide(rows) * reference.wide(weights)[..., None]).to(x.dtype)
    flat = rearrange(rows, "token choice hidden -> (token choice) hidden")
    return torch.empty_like(flat).index_copy_(0, places.flatten().long(), flat)


def _combine(y: Tensor, weights: Tensor | None, places: Tensor, impl: str) -> Tensor:
    """Result t is the sum of the rows y[places[t]], times weights[t] where there are weights."""
    if impl == "triton":
        return _expert_launch.combine(y, weights, places)
    rows = reference.wide(y[places])  # [num_tokens, top_k, hidden_size]
    rows = rows if weights is None else rows * reference.wide(weights)[..., None]
    return rows.sum(1).to(y.dtype)


def _run_spread(x: Tensor, places: Tensor, impl: str) -> Tensor:
    return _spread(x, None, places, impl)


def _run_spread_backward(dy: Tensor, places: Tensor, impl: str) -> Tensor:
    return _combine(dy, None, places, impl)


def _fake_spread(x: Tensor, places: Tensor, impl: str) -> Tensor:
    return x.new_empty(places.numel(), x.shape[1])


def _fake_spread_backward(dy: Tensor, places: Tensor, impl: str) -> Tensor:
    return dy.new_empty(places.shape[0], dy.shape[1])


def _save_spread(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, places, ctx.impl = inputs
    ctx.save_for_backward(places)


def _spread_gradients(
    ctx: Any, backward: Callable[..., Any], dy: Tensor | None
) -> tuple[Tensor | None, ...]:
    (places,) = ctx.saved_tensors
    return None if dy is None else backward(dy, places, ctx.impl), None, None


SPREAD = Operation(
    "moe_spread",
    run=_run_spread,
    fake=_fake_spread,
    save=_save_spread,
    backward=_run_spread_backward,
    fake_backward=_fake_spread_backward,
    gradients=_spread_gradients,
)


def _run_combine(y: Tensor, weights: Tensor, places: Tensor, impl: str) -> Tensor:
    return _combine(y, weights, places, impl)


def _run_combine_backward(
    y: Tensor, weights: Tensor, places: Tensor, d_out: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    products = reference.wide(y[places]) * reference.wide(d_out)[:, None]
    return _spread(d_out, weights, places, impl), products.sum(-1).to(weights.dtype)


def _fake_combine(y: Tensor, weights: Tensor, places: Tensor, impl: str) -> Tensor:
    return y.new_empty(places.shape[0], y.shape[1])


def _fake_combine_backward(
    y: Tensor, weights: Tensor, places: Tensor, d_out: Tensor, impl: str
) -> tuple[Tensor, Tensor]:
    return y.new_empty(y.shape), weights.new_empty(weights.shape)


def _save_combine(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    y, weights, places, ctx.impl = inputs
    ctx.save_for_backward(y, weights, places)


def _combine_gradients(
    ctx: Any, backward: Callable[..., Any], d_out: Tensor | None
) -> tuple[Tensor | None, ...]:
    if d_out is None:
        return None, None, None, None
    dy, d_weights = backward(*ctx.saved_tensors, d_out, ctx.impl)
    return dy, d_weights, None, None


COMBINE = Operation(
    "moe_combine",
    run=_run_combine,
    fake=_fake_combine,
    save=_save_combine,
    backward=_run_combine_backward,
    fake_backward=_fake_combine_backward,
    gradients=_combine_gradients,
)


def _check(x: Tensor, gate_up: Tensor, down: Tensor, routing: Routing, activation: str) -> None:
    if not isinstance(routing, Routing):
        found = f"expected a Routing, got {type(routing).__name__}"
        raise TypeError(f"routing: {found}; route makes it")
    if x.dim() != 2:
        _checks.check_shape("x", x, ("num_tokens", "hidden_size"))
    num_tokens, hidden_size = x.shape
    num_experts = len(routing.offsets) - 1
    if gate_up.dim() != 3 or gate_up.shape[1] % 2:
        _checks.check_shape("gate_up", gate_up, (num_experts, "2 * inner", hidden_size))
        raise _checks.fail("gate_up shape", "an even number of rows", list(gate_up.shape))
    inner = gate_up.shape[1] // 2
    _checks.check_shape("gate_up", gate_up, (num_experts, 2 * inner, hidden_size))
    _checks.check_shape("down", down, (num_experts, hidden_size, inner))
    _checks.check_shape("routing.places", routing.places, (num_tokens, "top_k"), "a row a token")
    _checks.check_kind("x", x, "floating point")
    _checks.check_dtype("gate_up", gate_up, (x.dtype,), "as x has")
    _checks.check_dtype("down", down, (x.dtype,), "as x has")
    _checks.check_same_device(x=x, gate_up=gate_up, down=down, routing=routing.places)
    names = ("silu", "gelu", "gelu_tanh")
    _checks.check(activation in names, "activation", f"one of {list(names)}", repr(activation))
