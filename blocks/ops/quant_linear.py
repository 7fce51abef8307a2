"""Multiplication of rows by a weight held in int8, fp8 or int4."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from blocks import _checks
from blocks._autograd import Operation, must_trace
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import _matrix_tiles, _quant_launch, _quant_native, reference
from blocks.ops.quant import QuantizedWeight
from blocks.ops.quantize_rows import quantize_rows

HAS = ("reference", "torch", "triton")
MAX_NATIVE_ROWS = {torch.bfloat16: 32, torch.float32: 64}
"""Most rows for which decoding in registers beats decoding to a tile that torch multiplies."""


@_checks.expects_tensors
def quant_linear(
    x: Float[Tensor, "*rows in_features"],
    weight: QuantizedWeight,
    bias: Float[Tensor, " out_features"] | None = None,
    *,
    quantize_input: bool = False,
    impl: Impl | None = None,
) -> Float[Tensor, "*rows out_features"]:
    """``x @ weight.dequantize().T + bias``, accumulated in fp32 and rounded once.

    The weight stays in few bits on its way from memory, so a step of few rows takes the time of
    its bytes. With ``quantize_input`` the rows of x are rounded too (``quantize_rows``) and the
    product is one of eight-bit numbers: int8 exactly in integers, fp8 with a scale a row, or a row
    and column group where the weight has column groups. That pays where there are many rows.

    Args:
        x: any leading dimensions; fp32, bf16 or fp16.
        weight: from ``quantize_weight``, or built of a checkpoint's tensors.
        bias: one addend per output, in x's dtype, or None.
        quantize_input: round x to the weight's format as well; int8 or fp8.
        impl: None for the fastest where the tensors live.

    Raises:
        ValueError, TypeError: shapes or dtypes that disagree, int4 with ``quantize_input``, int8
            with ``quantize_input`` and column groups, gradients through rounded rows.

    >>> import torch
    >>> from blocks.ops import quantize_weight
    >>> weight = quantize_weight(torch.tensor([[1.27, 0.5], [0.0, 127.0]]))
    >>> quant_linear(torch.tensor([[1.0, 2.0]]), weight)
    tensor([[  2.2700, 254.0000]])

    Reference: Dettmers et al. 2022, LLM.int8, 2; Frantar et al. 2024, Marlin; DeepSeek-AI 2024,
    DeepSeek-V3, 3.3.
    """
    _check(x, weight, bias, quantize_input)
    chosen = _choose(impl, x, weight, bias)
    if chosen == "reference":
        return reference.quant_linear(x, weight, bias, quantize_input=quantize_input)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if must_trace(x, bias):
        parts = (weight.values, weight.scales, weight.zeros, *weight.shape, *weight.group)
        y = QUANT_LINEAR(rows, *parts, bias, quantize_input, chosen)
    elif quantize_input:
        y = _run_rounded(rows, weight, bias, chosen)
    else:
        y = _run_decoded(rows, weight, bias, chosen)
    return y.view(*x.shape[:-1], weight.shape[0])


def quant_linear_work(num_rows: int, weight: QuantizedWeight, dtype_bytes: int) -> Work:
    """Work of ``quant_linear``: the stored weight, the rows and the result cross memory once."""
    outputs, inputs = weight.shape
    flops = 2 * num_rows * inputs * outputs
    return Work(flops, weight.num_bytes + num_rows * (inputs + outputs) * dtype_bytes)


def input_group(weight: QuantizedWeight) -> int | None:
    """Columns of x that share a scale under ``quantize_input``; None for whole rows."""
    return None if weight.scales.shape[1] <= 1 else weight.group[1]


def _check(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, quantize_input: bool) -> None:
    if not isinstance(weight, QuantizedWeight):
        found = f"expected a QuantizedWeight, got {type(weight).__name__}"
        raise TypeError(f"weight: {found}; quantize_weight makes it")
    if x.dim() == 0:
        raise _checks.fail("x shape", "at least one dimension", [])
    outputs, inputs = weight.shape
    if x.shape[-1] != inputs:
        _checks.check_shape("x", x, ("...", inputs), "as weight has columns")
    _checks.check_kind("x", x, "floating point")
    if bias is not None:
        _checks.check_shape("bias", bias, (outputs,), "one addend per row of weight")
        _checks.check_dtype("bias", bias, (x.dtype,), "as x has")
    _checks.check_same_device(x=x, weight=weight.values, bias=bias)
    if not quantize_input:
        return
    hint = "int4 is for weights; quantize to int8 or fp8"
    _checks.check(weight.format != "int4", "quantize_input", "False for int4", True, hint)
    if weight.format == "int8":
        whole = input_group(weight) is None
        hint = "quantize the weight with group_size='channel'"
        _checks.check(whole, "quantize_input", "one scale a row of weight", "column groups", hint)
    needs = torch.is_grad_enabled() and x.requires_grad
    hint = "rounding has no gradient; leave quantize_input off or call under torch.no_grad()"
    _checks.check(not needs, "quantize_input", "x without requires_grad", True, hint)


def _choose(impl: str | None, x: Tensor, weight: QuantizedWeight, bias: Tensor | None) -> str:
    has = HAS if x.dtype in _matrix_tiles.DTYPES else HAS[:2]
    if torch.compiler.is_compiling():
        if impl in (*has, "native"):
            return str(impl)  # whether it can run here is found out when it does
    elif _quant_native.ready(weight, x.dtype):
        has = (*has, "native")
    grad = must_trace(x, bias)
    return choose_impl(impl, has, x, grad=grad, differentiable=(*HAS, "native"))


def _run_decoded(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, impl: str) -> Tensor:
    """Rows as they are by the decoded weight."""
    if impl == "triton":
        return _quant_launch.decode_linear(x, weight, bias)
    if impl == "torch":
        return F.linear(x, weight.dequantize(x.dtype), bias)
    if len(x) <= MAX_NATIVE_ROWS[x.dtype]:
        return _quant_native.linear(x, weight, bias)
    y = x.new_empty(len(x), weight.shape[0])
    step = max(1, _quant_native.TILE_BYTES // (weight.shape[1] * x.itemsize + 1))
    for begin in range(0, weight.shape[0], step):
        end = min(begin + step, weight.shape[0])
        part = None if bias is None else bias[begin:end]
        plain = _quant_native.dequantize(weight, x.dtype, begin, end)
        y[:, begin:end] = F.linear(x, plain, part)
    return y


def _run_rounded(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, impl: str) -> Tensor:
    """Rounded rows by the weight in its own format."""
    how = "triton" if impl == "triton" else None
    rows = quantize_rows(x, format=_row_format(weight), group_size=input_group(weight), impl=how)
    if impl == "triton":
        return _quant_launch.scaled_linear(rows, weight, bias, x.dtype)
    # torch 2.11 to 2.13 multiply one column wrongly, and no rows not at all.
    if weight.format == "int8" and x.is_cpu and len(x) and x.shape[1] > 1:
        sums = torch._int_mm(rows.values, weight.values.t())
        y = sums.float() * rows.scales * scale_per_output(weight)
    else:
        y = _run_decoded(rows.dequantize(), weight, None, impl)
    return (y if bias is None else y + bias.float()).to(x.dtype)


def _row_format(weight: QuantizedWeight) -> Literal["int8", "fp8"]:
    return "int8" if weight.format == "int8" else "fp8"


def scale_per_output(weight: QuantizedWeight) -> Tensor:
    """Scales of a weight without column groups, one a row of it."""
    return weight.scales[:, 0].repeat_interleave(weight.group[0])[: weight.shape[0]]


def _run(
    x: Tensor,
    values: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    out_features: int,
    in_features: int,
    group_rows: int,
    group_columns: int,
    bias: Tensor | None,
    quantize_input: bool,
    impl: str,
) -> Tensor:
    shape, group = (out_features, in_features), (group_rows, group_columns)
    weight = QuantizedWeight(values, scales, zeros, shape, group)
    return (_run_rounded if quantize_input else _run_decoded)(x, weight, bias, impl)


def _fake(x: Tensor, values: Tensor, scales: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(x.shape[0], values.shape[0])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _, values, scales, zeros, *ctx.sizes, _, _, _ = inputs
    ctx.save_for_backward(values, scales, zeros)


def _run_backward(
    dy: Tensor,
    values: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    out_features: int,
    in_features: int,
    group_rows: int,
    group_columns: int,
    wants_x: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and bias; an empty tensor where none is wanted."""
    shape, group = (out_features, in_features), (group_rows, group_columns)
    dx, d_bias = dy.new_empty(0), dy.new_empty(0)
    if wants_x:
        dx = dy @ QuantizedWeight(values, scales, zeros, shape, group).dequantize(dy.dtype)
    if wants_bias:
        d_bias = dy.sum(0)
    return dx, d_bias


def _fake_backward(
    dy: Tensor,
    values: Tensor,
    scales: Tensor,
    zeros: Tensor | None,
    out_features: int,
    in_features: int,
    group_rows: int,
    group_columns: int,
    wants_x: bool,
    wants_bias: bool,
) -> tuple[Tensor, Tensor]:
    dx = dy.new_empty((dy.shape[0], in_features) if wants_x else 0)
    return dx, dy.new_empty(out_features if wants_bias else 0)


def _gradients(
    ctx: Any, backward: Callable[..., Any], dy: Tensor | None
) -> tuple[Tensor | None, ...]:
    gradients: list[Tensor | None] = [None] * 11
    wants_x, wants_bias = ctx.needs_input_grad[0], ctx.needs_input_grad[8]
    if dy is not None:
        dx, d_bias = backward(dy, *ctx.saved_tensors, *ctx.sizes, wants_x, wants_bias)
        gradients[0] = dx if wants_x else None
        gradients[8] = d_bias if wants_bias else None
    return tuple(gradients)


QUANT_LINEAR = Operation(
    "quant_linear",
    run=_run,
    fake=_fake,
    save=_save,
    backward=_run_backward,
    fake_backward=_fake_backward,
    gradients=_gradients,
)
