"""LayerNorm over the last dimension, with the residual addition fused in."""

from typing import overload

from jaxtyping import Float
from torch import Tensor

from blocks._autograd import must_trace
from blocks._checks import expects_tensors
from blocks._impl import Impl
from blocks.ops import reference
from blocks.ops._library import choose
from blocks.ops._norm import DIFFERENTIABLE, HAS, NORM, Normed, check_norm, native_norm, triton_norm


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
@expects_tensors
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
    check_norm(x, weight, bias, residual, eps)
    traced = must_trace(x, weight, bias, residual)
    others = (weight, bias, residual)
    chosen = choose(impl, HAS, x, *others, traced=traced, differentiable=DIFFERENTIABLE)
    if chosen == "reference":
        normed = reference.layer_norm(x, weight, bias, eps=eps, residual=residual)
    elif traced:
        normed = NORM(x, weight, bias, residual, eps, 0.0, True, chosen)
    elif chosen == "native":
        normed = native_norm(x, weight, bias, residual, eps, 0.0, True)
    else:
        normed = triton_norm(x, weight, bias, residual, eps, 0.0, True)
    return normed[0] if residual is None else Normed(normed[0], normed[1])
