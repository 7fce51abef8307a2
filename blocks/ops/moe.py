"""A mixture of gated MLPs over routed tokens."""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._autograd import must_trace
from blocks.ops.activation import gelu_and_mul, silu_and_mul
from blocks.ops.grouped_linear import grouped_linear, run
from blocks.ops.routing import Routing

HAS = ("reference", "torch")
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
    traced = must_trace(x, gate_up, down, routing.weights)
    chosen = choose_impl(impl, HAS, x, grad=traced)
    if chosen == "reference":
        return reference.moe(x, gate_up, down, routing, activation=activation)
    weights, places, offsets = routing.weights, routing.places, routing.offsets
    if traced:
        rows = _spread_op(x, None, places, chosen)
        inner = _activate(grouped_linear(rows, gate_up, offsets, impl=impl), activation)
        return _combine_op(grouped_linear(inner, down, offsets, impl=impl), weights, places, chosen)
    rows = x[routing.tokens]
    inner = _activate(run(rows, gate_up, offsets, chosen), activation)
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
    rows = x[:, None].expand(-1, places.shape[1], -1)
    if weights is not None:
        rows = (rows * weights.to(_wide(x))[..., None]).to(x.dtype)
    flat = rows.reshape(places.numel(), x.shape[1])
    return torch.empty_like(flat).index_copy_(0, places.flatten().long(), flat)


def _combine(y: Tensor, weights: Tensor | None, places: Tensor, impl: str) -> Tensor:
    """Result t is the sum of the rows y[places[t]], times weights[t] where there are weights."""
    rows = y[places].to(_wide(y))  # [num_tokens, top_k, hidden_size]
    rows = rows if weights is None else rows * weights.to(rows.dtype)[..., None]
    return rows.sum(1).to(y.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@torch.library.custom_op("blocks::moe_spread", mutates_args=())
def _spread_op(x: Tensor, weights: Tensor | None, places: Tensor, impl: str) -> Tensor:
    return _spread(x, weights, places, impl)


@_spread_op.register_fake
def _(x: Tensor, weights: Tensor | None, places: Tensor, impl: str) -> Tensor:
    return x.new_empty(places.numel(), x.shape[1])


@torch.library.custom_op("blocks::moe_combine", mutates_args=())
def _combine_op(y: Tensor, weights: Tensor | None, places: Tensor, impl: str) -> Tensor:
    return _combine(y, weights, places, impl)


@_combine_op.register_fake
def _(y: Tensor, weights: Tensor | None, places: Tensor, impl: str) -> Tensor:
    return y.new_empty(places.shape[0], y.shape[1])


def _keep_spread(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, weights, places, ctx.impl = inputs
    assert weights is None, "only rows without weights are spread in a forward pass"
    ctx.save_for_backward(places)


def _spread_backward(ctx: Any, d_rows: Tensor) -> tuple[Tensor, None, None, None]:
    (places,) = ctx.saved_tensors
    return _combine_op(d_rows, None, places, ctx.impl), None, None, None


def _keep_combine(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    y, weights, places, ctx.impl = inputs
    ctx.save_for_backward(y, weights, places)


def _combine_backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
    y, weights, places = ctx.saved_tensors
    dy = _spread_op(d_out, weights, places, ctx.impl)
    if not ctx.needs_input_grad[1]:
        return dy, None, None, None
    wide = _wide(y)
    d_weights = (y[places].to(wide) * d_out[:, None].to(wide)).sum(-1)
    return dy, d_weights.to(weights.dtype), None, None


_spread_op.register_autograd(_spread_backward, setup_context=_keep_spread)
_combine_op.register_autograd(_combine_backward, setup_context=_keep_combine)


def _check(x: Tensor, gate_up: Tensor, down: Tensor, routing: Routing, activation: str) -> None:
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
