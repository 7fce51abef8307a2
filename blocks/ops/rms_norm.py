"""RMSNorm over the last dimension, with the residual addition fused in."""

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
@expects_tensors
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
    check_norm(x, weight, None, residual, eps)
    traced = must_trace(x, weight, residual)
    chosen = choose(impl, HAS, x, weight, residual, traced=traced, differentiable=DIFFERENTIABLE)
    if chosen == "reference":
        normed = reference.rms_norm(
            x, weight, eps=eps, residual=residual, weight_offset=weight_offset
        )
    elif traced:
        normed = NORM(x, weight, None, residual, eps, weight_offset, False, chosen)
    elif chosen == "native":
        normed = native_norm(x, weight, None, residual, eps, weight_offset, False)
    else:
        normed = triton_norm(x, weight, None, residual, eps, weight_offset, False)
    return normed[0] if residual is None else Normed(normed[0], normed[1])
