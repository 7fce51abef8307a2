"""Multiplication of rows by a weight matrix, fast when there are few rows to a large matrix."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from blocks import _checks
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._autograd import must_trace

HAS = ("reference", "torch")


def linear(
    x: Float[Tensor, "*rows in_features"],
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, " out_features"] | None = None,
    *,
    impl: Impl | None = None,
) -> Float[Tensor, "*rows out_features"]:
    """``x @ weight.T + bias``, accumulated in fp32 and rounded once.

    Args:
        x: any leading dimensions; fp32, bf16 or fp16.
        weight: row-major as checkpoints store it, in x's dtype.
        bias: one addend per output, or None.
        impl: None for the fastest where the tensors live.

    Raises:
        ValueError, TypeError: shapes or dtypes that disagree.

    >>> import torch
    >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    tensor([[11., 17.]])
    """
    _check(x, weight, bias)
    chosen = choose_impl(impl, HAS, x, grad=must_trace(x, weight, bias))
    if chosen == "reference" and impl is not None:
        return reference.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_work(
    num_rows: int, in_features: int, out_features: int, dtype_bytes: int, *, bias: bool = False
) -> Work:
    """Work of ``linear``: the weights, the rows and the result cross memory once."""
    flops = 2 * num_rows * in_features * out_features
    elements = out_features * in_features + num_rows * (in_features + out_features)
    return Work(flops, (elements + bias * out_features) * dtype_bytes)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    _checks.check_shape("weight", weight, ("out_features", x.shape[-1]), "its columns match x's")
    if bias is not None:
        _checks.check_shape("bias", bias, (weight.shape[0],), "one addend per row of weight")
