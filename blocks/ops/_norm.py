"""What ``rms_norm`` and ``layer_norm`` share: checks, work, and the operator with its gradient.

Both are one operator, ``blocks::norm``; for its gradient it keeps the normed rows (x, or the
residual sum), and one fp32 number a row, or two.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blocks import _checks
from blocks._autograd import Operation
from blocks._work import Work
from blocks.ops._norm_native import native_backward, native_norm
from blocks.ops._norm_triton import triton_backward, triton_norm

HAS = ("reference", "triton")
DIFFERENTIABLE = ("reference", "native", "triton")


class Normed(NamedTuple):
    """A norm with a fused addition.

    output: the normalised sum, like x.
    residual: the sum itself, rounded to x's dtype, to be carried on as the residual stream.
    """

    output: Tensor
    residual: Tensor


def norm_work(num_rows: int, hidden_size: int, dtype_bytes: int, *, residual: bool = False) -> Work:
    """Work of ``rms_norm`` or ``layer_norm``: four operations an element, each row in and out."""
    elements = num_rows * hidden_size
    passes = 4 if residual else 2
    return Work(4 * elements, (passes * elements + hidden_size) * dtype_bytes)


def norm_backward_work(
    num_rows: int, hidden_size: int, dtype_bytes: int, *, residual: bool = False
) -> Work:
    """Work of their gradients: rows and their gradients in (two with ``residual``), one out.

    Nine operations an element; the weight goes in and its gradient out.
    """
    elements = num_rows * hidden_size
    passes = 4 if residual else 3
    return Work(9 * elements, (passes * elements + 2 * hidden_size) * dtype_bytes)


def check_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float
) -> None:
    """Refuse what neither norm takes."""
    width, dtype = x.shape[-1:], x.dtype
    usual = (
        len(width) == 1
        and dtype.is_floating_point
        and (weight.dtype == dtype and weight.shape == width)
        and (bias is None or (bias.dtype == dtype and bias.shape == width))
        and (residual is None or (residual.dtype == dtype and residual.shape == x.shape))
        and eps >= 0
    )
    if not usual:
        _check_slowly(x, weight, bias, residual, eps)


def _check_slowly(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, eps: float
) -> None:
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None:
            _checks.check_kind(name, tensor, "floating point")
    _checks.check(x.dim() >= 1, "x shape", "at least one dimension", x.shape)
    hidden_size = x.shape[-1]
    _checks.check_shape("weight", weight, (hidden_size,), "one factor per column of x")
    if bias is not None:
        _checks.check_shape("bias", bias, (hidden_size,), "one addend per column of x")
    if residual is not None:
        _checks.check_shape("residual", residual, tuple(x.shape), "it is added to x")
        _checks.check_dtype("residual", residual, (x.dtype,), "the sum keeps x's dtype")
    _checks.check(eps >= 0, "eps", "a number of at least 0", eps)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    weight_offset: float,
    is_layer: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Output, sum, mean and rstd of the rows; the sum has no elements without ``residual``."""
    mean, rstd = _statistics(x, is_layer)
    norm = native_norm if impl == "native" else triton_norm
    kept = mean if is_layer else None
    y, total = norm(x, weight, bias, residual, eps, weight_offset, is_layer, kept, rstd)
    return y, x.new_empty(0) if residual is None else total, mean, rstd


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    eps: float,
    weight_offset: float,
    is_layer: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    y = x.new_empty(x.shape)
    total = x.new_empty(0 if residual is None else x.shape)
    return y, total, *_statistics(x, is_layer)


def _statistics(x: Tensor, is_layer: bool) -> tuple[Tensor, Tensor]:
    """Room for the mean (none for RMSNorm) and the reciprocal standard deviation of each row."""
    rstd = x.new_empty(x.shape[:-1], dtype=torch.float32)
    mean = x.new_empty(x.shape[:-1] if is_layer else (0,), dtype=torch.float32)
    return mean, rstd


def _save(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, _, *options = inputs
    _, total, mean, rstd = outputs
    ctx.save_for_backward(x if residual is None else total, weight, bias, mean, rstd)
    ctx.options, ctx.has_residual = options, residual is not None


def _backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight_offset: float,
    is_layer: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the rows, the weight and the bias; the last has no elements without bias."""
    dweight = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    dbias = weight.new_empty(0) if bias is None else torch.zeros_like(bias)
    x = x.contiguous()
    if x.numel() == 0:
        return torch.empty_like(x), dweight, dbias
    backward = native_backward if impl == "native" else triton_backward
    dx = backward(
        dy.contiguous(),
        None if dtotal is None else dtotal.contiguous(),
        x,
        weight.contiguous(),
        mean if is_layer else None,
        rstd,
        weight_offset,
        dweight,
        None if bias is None else dbias,
    )
    return dx, dweight, dbias


def _fake_backward(
    dy: Tensor,
    dtotal: Tensor | None,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    weight_offset: float,
    is_layer: bool,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    dbias = weight.new_empty(0 if bias is None else bias.shape)
    return x.new_empty(x.shape), weight.new_empty(weight.shape), dbias


def _gradients(
    ctx: Any, backward: Callable[..., Any], dy: Tensor | None, dtotal: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, rstd = ctx.saved_tensors
    if not ctx.has_residual:
        dtotal = None  # the gradient of no elements
    if dy is None:  # only the sum was used
        return dtotal, None, None, dtotal, None, None, None, None
    dx, dweight, dbias = backward(dy, dtotal, x, weight, bias, mean, rstd, *ctx.options)
    dbias = None if bias is None else dbias
    return dx, dweight, dbias, dx if ctx.has_residual else None, None, None, None, None


NORM = Operation(
    "norm",
    run=_run,
    fake=_fake,
    save=_save,
    backward=_backward,
    fake_backward=_fake_backward,
    gradients=_gradients,
)
"""x, weight, bias, residual, eps, weight_offset, is_layer, impl to output, sum, mean and rstd."""
