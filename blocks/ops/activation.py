"""Activations of the feed-forward layers, alone and fused with the gate's multiplication."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._autograd import must_trace
from blocks.ops._library import choose, functions

HAS = ("reference", "triton")
TILE = 1024
"""Results of one Triton program."""
Approximate = Literal["none", "tanh"]


@_checks.expects_tensors
def silu_and_mul(
    gate_up: Float[Tensor, "*rows two_hidden"], *, impl: Impl | None = None
) -> Float[Tensor, "*rows hidden"]:
    """SwiGLU: ``silu(gate) * up`` where gate is the first half of each row and up the second.

    Computed in fp32 and rounded once.

    Args:
        gate_up: rows of even length; fp32, bf16 or fp16.
        impl: None for the fastest where the tensor lives.

    Raises:
        ValueError, TypeError: rows of odd length, a dtype that is not floating.

    >>> import torch
    >>> silu_and_mul(torch.tensor([[0.0, 1.0, 5.0, 2.0]]))
    tensor([[0.0000, 1.4621]])

    Reference: Shazeer 2020, "GLU variants improve transformer", equation 6.
    """
    _check_halves(gate_up)
    chosen = choose(impl, HAS, gate_up, traced=must_trace(gate_up))
    if chosen == "native":
        return _native_gated("silu_and_mul", gate_up)
    if chosen == "triton":
        return _triton_activation("silu", gate_up, gated=True)
    return reference.silu_and_mul(gate_up)


@_checks.expects_tensors
def gelu_and_mul(
    gate_up: Float[Tensor, "*rows two_hidden"],
    *,
    approximate: Approximate = "none",
    impl: Impl | None = None,
) -> Float[Tensor, "*rows hidden"]:
    """GeGLU: ``gelu(gate) * up`` where gate is the first half of each row and up the second.

    Computed in fp32 and rounded once. ``approximate="tanh"`` is Gemma's; it has a
    native CPU path, the exact formula takes torch's.

    Args:
        gate_up: rows of even length; fp32, bf16 or fp16.
        approximate: ``none`` for the exact error function, ``tanh`` for the tanh formula.
        impl: None for the fastest where the tensor lives.

    Raises:
        ValueError, TypeError: rows of odd length, an unknown formula, a dtype that is not floating.

    Reference: Shazeer 2020, "GLU variants improve transformer", equation 6; Hendrycks and Gimpel
    2016, "Gaussian error linear units", section 2 (both formulas).
    """
    _check_halves(gate_up)
    _check_approximate(approximate)
    traced = must_trace(gate_up)
    if approximate == "tanh":
        chosen = choose(impl, HAS, gate_up, traced=traced)
    else:
        chosen = choose_impl(impl, HAS, gate_up, grad=traced)
    if chosen == "native":
        return _native_gated("gelu_tanh_and_mul", gate_up)
    if chosen == "triton":
        return _triton_activation(_gelu_name(approximate), gate_up, gated=True)
    return reference.gelu_and_mul(gate_up, approximate=approximate)


@_checks.expects_tensors
def gelu(
    x: Float[Tensor, "*shape"], *, approximate: Approximate = "none", impl: Impl | None = None
) -> Float[Tensor, "*shape"]:
    """``x * Phi(x)`` with the normal distribution function, or its tanh approximation; in fp32.

    Reference: Hendrycks and Gimpel 2016, "Gaussian error linear units", section 2.
    """
    _check_floating(x)
    _check_approximate(approximate)
    if choose_impl(impl, HAS, x, grad=must_trace(x)) == "triton":
        return _triton_activation(_gelu_name(approximate), x, gated=False)
    return reference.gelu(x, approximate=approximate)


@_checks.expects_tensors
def relu(x: Float[Tensor, "*shape"], *, impl: Impl | None = None) -> Float[Tensor, "*shape"]:
    """``max(x, 0)``; NaN stays NaN."""
    _check_floating(x)
    if choose_impl(impl, HAS, x, grad=must_trace(x)) == "triton":
        return _triton_activation("relu", x, gated=False)
    return reference.relu(x)


def activation_work(num_elements: int, dtype_bytes: int) -> Work:
    """Work of ``gelu`` or ``relu``: four operations an element, each read and written once."""
    return Work(4 * num_elements, 2 * num_elements * dtype_bytes)


def gated_work(num_rows: int, hidden_size: int, dtype_bytes: int) -> Work:
    """Work of ``silu_and_mul`` or ``gelu_and_mul``; ``hidden_size`` columns come out."""
    elements = num_rows * hidden_size
    return Work(5 * elements, 3 * elements * dtype_bytes)


def _check_floating(x: Tensor) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x dtype: expected a floating point dtype, got {x.dtype}")


def _check_halves(gate_up: Tensor) -> None:
    _check_floating(gate_up)
    ok = gate_up.dim() >= 1 and gate_up.shape[-1] % 2 == 0
    _checks.check(ok, "gate_up shape", "rows of even length (gate, up)", gate_up.shape)


def _check_approximate(approximate: str) -> None:
    _checks.check(
        approximate in ("none", "tanh"), "approximate", "'none' or 'tanh'", repr(approximate)
    )


def _native_gated(name: str, gate_up: Tensor) -> Tensor:
    gate_up = gate_up.contiguous()
    hidden_size = gate_up.shape[-1] // 2
    y = gate_up.new_empty(*gate_up.shape[:-1], hidden_size)
    num_rows = y.numel() // hidden_size if hidden_size else 0
    _functions(name)[gate_up.dtype](gate_up.data_ptr(), y.data_ptr(), num_rows, hidden_size)
    return y


def _gelu_name(approximate: str) -> str:
    return "gelu_tanh" if approximate == "tanh" else "gelu"


def _triton_activation(activation: str, x: Tensor, *, gated: bool) -> Tensor:
    from blocks.ops._triton.activation import _activation_kernel

    x = x.contiguous()
    if gated:
        hidden_size = x.shape[-1] // 2
        y = x.new_empty(*x.shape[:-1], hidden_size)
    else:
        hidden_size = x.numel()  # one long row
        y = torch.empty_like(x)
    if y.numel() == 0:
        return y
    tiles = -(-hidden_size // TILE)
    grid = (y.numel() // hidden_size, tiles) if gated else (tiles,)
    launch: Any = _activation_kernel[grid]
    launch(x, y, hidden_size, ACTIVATION=activation, GATED=gated, TILE=TILE)
    return y


@functools.cache
def _functions(name: str) -> dict[torch.dtype, Callable[..., None]]:
    return functions("activation", name, "ppnn")
