"""Rows in groups, each group multiplied by its own weight matrix."""

import itertools
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from blocks import _checks
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import reference
from blocks.ops._autograd import must_trace
from blocks.ops.linear import linear

HAS = ("reference", "torch")


@_checks.expects_tensors
def grouped_linear(
    x: Float[Tensor, "num_rows in_features"],
    weight: Float[Tensor, "num_groups out_features in_features"],
    offsets: Int[Tensor, " num_groups_and_one"],
    *,
    impl: Impl | None = None,
) -> Float[Tensor, "num_rows out_features"]:
    """``x[a:b] @ weight[g].T`` for the rows a = offsets[g] to b = offsets[g + 1] of every group.

    Accumulated in fp32 and rounded once. Groups may be empty, and rows from offsets[-1] on belong
    to none: they are not read and their results are 0. On an accelerator ``offsets`` is read by
    the kernel alone: nothing waits for it, and the launch depends on shapes only.

    Args:
        x: rows sorted by group; fp32, bf16, fp16 or fp64.
        weight: one row-major matrix a group, in x's dtype.
        offsets: int32, from 0, never falling, at most num_rows; values are not checked.
        impl: None for the fastest where the tensors live.

    Raises:
        ValueError, TypeError: shapes or dtypes that disagree.

    >>> import torch
    >>> weight = torch.tensor([[[2.0]], [[3.0]]])
    >>> grouped_linear(torch.ones(3, 1), weight, torch.tensor([0, 1, 3], dtype=torch.int32))
    tensor([[2.],
            [3.],
            [3.]])

    Reference: Gale et al. 2023, MegaBlocks, 5.
    """
    _check(x, weight, offsets)
    if must_trace(x, weight):
        chosen = choose_impl(impl, HAS, x, grad=True)
        if chosen == "reference":
            return reference.grouped_linear(x, weight, offsets)
        return _grouped_linear_op(x, weight, offsets, chosen)
    return run(x, weight, offsets, choose_impl(impl, HAS, x))


def grouped_linear_work(
    num_rows: int, in_features: int, out_features: int, num_groups: int, dtype_bytes: int
) -> Work:
    """Work of ``grouped_linear`` where ``num_groups`` groups have rows."""
    flops = 2 * num_rows * in_features * out_features
    weights = num_groups * in_features * out_features
    return Work(flops, (weights + num_rows * (in_features + out_features)) * dtype_bytes)


def run(x: Tensor, weight: Tensor, offsets: Tensor, impl: str) -> Tensor:
    """``grouped_linear`` without checks and without gradients."""
    if impl == "reference":
        return reference.grouped_linear(x, weight, offsets)
    y = x.new_empty(len(x), weight.shape[1])
    bounds = offsets.tolist()
    for group, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if begin < end:
            y[begin:end] = linear(x[begin:end], weight[group])
    y[bounds[-1] :] = 0
    return y


def run_weight_grad(x: Tensor, dy: Tensor, offsets: Tensor, impl: str) -> Tensor:
    """``dy[a:b].T @ x[a:b]`` for every group: [num_groups, out_features, in_features]."""
    dw = x.new_zeros(len(offsets) - 1, dy.shape[1], x.shape[1])
    bounds = offsets.tolist()
    for group, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if begin < end:
            torch.mm(dy[begin:end].t(), x[begin:end], out=dw[group])
    return dw


@torch.library.custom_op("blocks::grouped_linear", mutates_args=())
def _grouped_linear_op(x: Tensor, weight: Tensor, offsets: Tensor, impl: str) -> Tensor:
    return run(x, weight, offsets, impl)


@_grouped_linear_op.register_fake
def _(x: Tensor, weight: Tensor, offsets: Tensor, impl: str) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("blocks::grouped_linear_weight_grad", mutates_args=())
def _weight_grad_op(x: Tensor, dy: Tensor, offsets: Tensor, impl: str) -> Tensor:
    return run_weight_grad(x, dy, offsets, impl)


@_weight_grad_op.register_fake
def _(x: Tensor, dy: Tensor, offsets: Tensor, impl: str) -> Tensor:
    return x.new_empty(offsets.shape[0] - 1, dy.shape[1], x.shape[1])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, offsets, ctx.impl = inputs
    ctx.save_for_backward(x, weight, offsets)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    x, weight, offsets = ctx.saved_tensors
    wants_x, wants_weight = ctx.needs_input_grad[:2]
    dx = _grouped_linear_op(dy, weight.transpose(1, 2), offsets, ctx.impl) if wants_x else None
    dw = _weight_grad_op(x, dy, offsets, ctx.impl) if wants_weight else None
    return dx, dw, None, None


_grouped_linear_op.register_autograd(_backward, setup_context=_keep)


def _check(x: Tensor, weight: Tensor, offsets: Tensor) -> None:
    if x.dim() != 2:
        _checks.check_shape("x", x, ("num_rows", "in_features"))
    if weight.dim() != 3 or weight.shape[2] != x.shape[1]:
        wanted = ("num_groups", "out_features", x.shape[1])
        _checks.check_shape("weight", weight, wanted, "as x has columns")
    _checks.check_shape("offsets", offsets, (weight.shape[0] + 1,), "one more than groups")
    _checks.check_kind("x", x, "floating point")
    _checks.check_dtype("weight", weight, (x.dtype,), "as x has")
    _checks.check_dtype("offsets", offsets, (torch.int32,))
    _checks.check_same_device(x=x, weight=weight, offsets=offsets)
