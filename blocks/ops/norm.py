"""RMSNorm and LayerNorm over the last dimension, with the residual addition fused in."""

from typing import NamedTuple, overload

from jaxtyping import Float
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._autograd import must_trace

HAS = ("reference",)


class Normed(NamedTuple):
    """A norm with a fused addition.

    output: the normalised sum, like x.
    residual: the sum itself, rounded to x's dtype, to be carried on as the residual stream.
    """

    output: Tensor
    residual: Tensor


@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = ...,
    residual: None = None,
    weight_offset: float = ...,
    impl: Impl | None = None,
) -> Tensor: ...
@overload
def rms_norm(
    x: Tensor,
    weight: Tensor,
    *,
    eps: float = ...,
    residual: Tensor,
    weight_offset: float = ...,
    impl: Impl | None = None,
) -> Normed: ...
def rms_norm(
    x: Float[Tensor, "*rows hidden_size"],
    weight: Float[Tensor, " hidden_size"],
    *,
    eps: float = 1e-6,
    residual: Float[Tensor, "*rows hidden_size"] | None = None,
    weight_offset: float = 0.0,
    impl: Impl | None = None,
) -> Tensor | Normed:
    """Divide each row by its root mean square and multiply by the weight.

    ``x / sqrt(mean(x**2) + eps) * (weight_offset + weight)``, in fp32. Two rounding orders are in
    use and ``weight_offset`` tells them apart: with 0 the scaled row is rounded to x's dtype before
    it is multiplied (Llama, Qwen, Mistral); with another offset everything is multiplied in fp32
    and rounded once (Gemma, offset 1). Both equal transformers' modules.

    Args:
        x: any leading dimensions; fp32, bf16 or fp16.
        weight: one factor per column.
        eps: added to the mean square; at least 0.
        residual: added to x first, in x's dtype; the norm is that of the rounded sum.
        weight_offset: added to the weight.
        impl: None for the fastest where the tensors live.

    Returns:
        The normed rows in x's dtype, or with ``residual`` a ``Normed`` (output, residual).

    Raises:
        ValueError, TypeError: shapes that disagree, a dtype that is not floating, a negative eps.

    >>> import torch
    >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.ones(2), eps=0.0)
    tensor([[0.8485, 1.1314]])

    Reference: Zhang and Sennrich 2019, "Root mean square layer normalization", equation 4.
    """
    _check(x, weight, None, residual, eps)
    choose_impl(impl, HAS, x, grad=must_trace(x, weight, residual))
    normed = reference.rms_norm(x, weight, eps=eps, residual=residual, weight_offset=weight_offset)
    return normed[0] if residual is None else Normed(*normed)


@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = ...,
    residual: None = None,
    impl: Impl | None = None,
) -> Tensor: ...
@overload
def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    eps: float = ...,
    residual: Tensor,
    impl: Impl | None = None,
) -> Normed: ...
def layer_norm(
    x: Float[Tensor, "*rows hidden_size"],
    weight: Float[Tensor, " hidden_size"],
    bias: Float[Tensor, " hidden_size"] | None = None,
    *,
    eps: float = 1e-5,
    residual: Float[Tensor, "*rows hidden_size"] | None = None,
    impl: Impl | None = None,
) -> Tensor | Normed:
    """Standardise each row, multiply by the weight and add the bias.

    ``(x - mean(x)) / sqrt(var(x) + eps) * weight + bias`` in fp32, rounded once; the variance is
    the mean squared deviation (two passes, no cancellation).

    Args:
        x: any leading dimensions; fp32, bf16 or fp16.
        weight: one factor per column.
        bias: one addend per column, or None.
        eps: added to the variance; at least 0.
        residual: added to x first, in x's dtype; the norm is that of the rounded sum.
        impl: None for the fastest where the tensors live.

    Returns:
        The normed rows in x's dtype, or with ``residual`` a ``Normed`` (output, residual).

    Raises:
        ValueError, TypeError: shapes that disagree, a dtype that is not floating, a negative eps.

    >>> import torch
    >>> layer_norm(torch.tensor([[1.0, 3.0]]), torch.ones(2), eps=0.0)
    tensor([[-1.,  1.]])

    Reference: Ba, Kiros and Hinton 2016, "Layer normalization", equations 3 and 4.
    """
    _check(x, weight, bias, residual, eps)
    choose_impl(impl, HAS, x, grad=must_trace(x, weight, bias, residual))
    normed = reference.layer_norm(x, weight, bias, eps=eps, residual=residual)
    return normed[0] if residual is None else Normed(*normed)


def norm_work(num_rows: int, hidden_size: int, dtype_bytes: int, *, residual: bool = False) -> Work:
    """Work of ``rms_norm`` or ``layer_norm``: four operations an element, each row in and out."""
    elements = num_rows * hidden_size
    passes = 4 if residual else 2
    return Work(4 * elements, (passes * elements + hidden_size) * dtype_bytes)


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float
) -> None:
    if not x.is_floating_point():
        raise TypeError(f"x dtype: expected a floating point dtype, got {x.dtype}")
    _checks.check(x.dim() >= 1, "x shape", "at least one dimension", list(x.shape))
    hidden_size = x.shape[-1]
    _checks.check_shape("weight", weight, (hidden_size,), "one factor per column of x")
    if bias is not None:
        _checks.check_shape("bias", bias, (hidden_size,), "one addend per column of x")
    if residual is not None:
        _checks.check_shape("residual", residual, tuple(x.shape), "it is added to x")
        _checks.check_dtype("residual", residual, (x.dtype,), "the sum keeps x's dtype")
    _checks.check(eps >= 0, "eps", "a number of at least 0", eps)
