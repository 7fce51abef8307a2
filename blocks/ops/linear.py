"""Multiplication of rows by a weight matrix, fast when there are few rows to a large matrix."""

import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from blocks import _checks
from blocks._autograd import must_trace
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._library import choose, functions

HAS = ("reference", "torch")

MAX_NATIVE_ROWS = {torch.bfloat16: 32, torch.float32: 64}
"""Most rows for which streaming the weights beats torch's own matrix product.

Measured on Zen 5 (AVX512_BF16, 2 cores) against torch 2.13, weights [5632, 1024] and [1024, 2816]:
bf16 is about twice as fast up to 12 rows, 0.9 to 1.2 times at 32 and 0.8 to 1.0 at 48; fp32 is 1.4
to 2.8 times as fast from 1 row to 64.
"""


@_checks.expects_tensors
def linear(
    x: Float[Tensor, "*rows in_features"],
    weight: Float[Tensor, "out_features in_features"],
    bias: Float[Tensor, " out_features"] | None = None,
    *,
    impl: Impl | None = None,
) -> Float[Tensor, "*rows out_features"]:
    """``x @ weight.T + bias``, accumulated in fp32 and rounded once.

    On a CPU, few rows (up to ``MAX_NATIVE_ROWS`` of bf16 or fp32) take the native path: it reads
    each weight once, as stored, and adds up a result in an order that does not depend on how many
    rows the call has. Within that range a row's result is the same to the bit in any batch. More
    rows, other dtypes and gradients take torch's.

    Args:
        x: any leading dimensions; fp32, bf16 or fp16.
        weight: row-major as checkpoints store it, in x's dtype.
        bias: one addend per output, in x's dtype, or None.
        impl: None for the fastest where the tensors live; ``native`` takes any number of rows.

    Raises:
        ValueError, TypeError: shapes or dtypes that disagree.

    >>> import torch
    >>> linear(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    tensor([[11., 17.]])
    """
    if x.dim() == 0:
        raise _checks.fail("x shape", "at least one dimension", [])
    num_columns = x.shape[-1]
    if weight.dim() != 2 or weight.shape[1] != num_columns:
        _checks.check_shape("weight", weight, ("out_features", num_columns), "as x has columns")
    if bias is not None:
        _checks.check_shape("bias", bias, (weight.shape[0],), "one addend per row of weight")
    if weight.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        _check_dtypes(x, weight=weight, bias=bias)
    traced = must_trace(x, weight, bias)
    if impl is None and (traced or _too_many_rows(x)):
        return F.linear(x, weight, bias)
    if weight.is_contiguous():
        chosen = choose(impl, HAS, x, weight, bias, traced=traced)
    else:
        chosen = choose_impl(impl, HAS, x, grad=traced)
    if chosen == "native":
        return _run_native(x, weight, bias)
    if chosen == "reference":
        return reference.linear(x, weight, bias)
    return F.linear(x, weight, bias)


def linear_work(
    num_rows: int, in_features: int, out_features: int, dtype_bytes: int, *, bias: bool = False
) -> Work:
    """Work of ``linear``: the weights, the rows and the result cross memory once."""
    flops = 2 * num_rows * in_features * out_features
    elements = out_features * in_features + num_rows * (in_features + out_features)
    return Work(flops, (elements + bias * out_features) * dtype_bytes)


def _check_dtypes(x: Tensor, **others: Tensor | None) -> None:
    if torch.is_autocast_enabled(x.device.type):
        return  # it brings them to one dtype
    for name, tensor in others.items():
        if tensor is not None:
            _checks.check_dtype(name, tensor, (x.dtype,), "x, weight and bias share a dtype")


def _too_many_rows(x: Tensor) -> bool:
    limit = MAX_NATIVE_ROWS.get(x.dtype, 0) * x.shape[-1]
    return x.numel() > limit


def _run_native(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, bias = x.contiguous(), None if bias is None else bias.contiguous()
    inputs, outputs = x.shape[-1], weight.shape[0]
    y = x.new_empty(*x.shape[:-1], outputs)
    num_rows = y.numel() // outputs if outputs else 0
    _functions()[x.dtype](
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        num_rows,
        inputs,
        outputs,
    )
    return y


@functools.cache
def _functions() -> dict[torch.dtype, Callable[..., None]]:
    return functions("linear", "linear", "ppppnnn")
