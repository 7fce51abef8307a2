"""Activations of the feed-forward layers, alone and fused with the gate's multiplication."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from blocks import _checks
from blocks._autograd import must_trace
from blocks._impl import Impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._activation import activate
from blocks.ops._library import choose

HAS = ("reference", "triton")
DIFFERENTIABLE = ("reference", "native", "triton")

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
    traced = must_trace(gate_up)
    chosen = choose(impl, HAS, gate_up, traced=traced, differentiable=DIFFERENTIABLE)
    if chosen == "reference":
        return reference.silu_and_mul(gate_up)
    return activate(gate_up, "silu", True, chosen, traced)


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
    chosen = choose(
        impl,
        HAS,
        gate_up,
        traced=traced,
        differentiable=DIFFERENTIABLE,
        native=approximate == "tanh",
    )
    if chosen == "reference":
        return reference.gelu_and_mul(gate_up, approximate=approximate)
    return activate(gate_up, _gelu_name(approximate), True, chosen, traced)


@_checks.expects_tensors
def gelu(
    x: Float[Tensor, "*shape"], *, approximate: Approximate = "none", impl: Impl | None = None
) -> Float[Tensor, "*shape"]:
    """``x * Phi(x)`` with the normal distribution function, or its tanh approximation; in fp32.

    Reference: Hendrycks and Gimpel 2016, "Gaussian error linear units", section 2.
    """
    _check_floating(x)
    _check_approximate(approximate)
    traced = must_trace(x)
    chosen = choose(impl, HAS, x, traced=traced, differentiable=HAS, native=False)
    if chosen == "reference":
        return reference.gelu(x, approximate=approximate)
    return activate(x, _gelu_name(approximate), False, chosen, traced)


@_checks.expects_tensors
def relu(x: Float[Tensor, "*shape"], *, impl: Impl | None = None) -> Float[Tensor, "*shape"]:
    """``max(x, 0)``; NaN stays NaN."""
    _check_floating(x)
    traced = must_trace(x)
    chosen = choose(impl, HAS, x, traced=traced, differentiable=HAS, native=False)
    if chosen == "reference":
        return reference.relu(x)
    return activate(x, "relu", False, chosen, traced)


def activation_work(num_elements: int, dtype_bytes: int) -> Work:
    """Work of ``gelu`` or ``relu``: four operations an element, each read and written once."""
    return Work(4 * num_elements, 2 * num_elements * dtype_bytes)


def gated_work(num_rows: int, hidden_size: int, dtype_bytes: int) -> Work:
    """Work of ``silu_and_mul`` or ``gelu_and_mul``; ``hidden_size`` columns come out."""
    elements = num_rows * hidden_size
    return Work(5 * elements, 3 * elements * dtype_bytes)


def activation_backward_work(num_elements: int, dtype_bytes: int) -> Work:
    """Work of the gradient of ``gelu`` or ``relu``: two tensors in, one out."""
    return Work(8 * num_elements, 3 * num_elements * dtype_bytes)


def gated_backward_work(num_rows: int, hidden_size: int, dtype_bytes: int) -> Work:
    """Work of the gradient of ``silu_and_mul`` or ``gelu_and_mul``: three halves in, two out."""
    elements = num_rows * hidden_size
    return Work(12 * elements, 5 * elements * dtype_bytes)


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


def _gelu_name(approximate: str) -> str:
    return "gelu_tanh" if approximate == "tanh" else "gelu"
