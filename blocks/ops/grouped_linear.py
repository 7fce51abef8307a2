"""Rows in groups, each group multiplied by its own weight matrix."""

import itertools
from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from blocks import _checks
from blocks._autograd import Operation, must_trace
from blocks._impl import Impl, choose_impl
from blocks._work import Work
from blocks.ops import _expert_launch, _matrix_tiles, reference
from blocks.ops.linear import linear

HAS = ("reference", "torch", "triton")


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
    chosen = choose_grouped(impl, x, weight)
    if chosen == "reference":
        return reference.grouped_linear(x, weight, offsets)
    if must_trace(x, weight):
        return GROUPED_LINEAR(x, weight, offsets, chosen)
    return run(x, weight, offsets, chosen)


def grouped_linear_work(
    num_rows: int, in_features: int, out_features: int, num_groups: int, dtype_bytes: int
) -> Work:
    """Work of ``grouped_linear`` where ``num_groups`` groups have rows."""
    flops = 2 * num_rows * in_features * out_features
    weights = num_groups * in_features * out_features
    return Work(flops, (weights + num_rows * (in_features + out_features)) * dtype_bytes)


def choose_grouped(impl: Impl | None, x: Tensor, *others: Tensor) -> Impl:
    """The implementation of ``grouped_linear`` and ``moe``; torch calls multiply fp64."""
    has = HAS if x.dtype in _matrix_tiles.DTYPES else HAS[:2]
    traced = must_trace(x, *others)
    if torch.compiler.is_compiling() and impl is not None and impl in has:
        return impl  # whether it can run here is found out when it does
    return cast(Impl, choose_impl(impl, has, x, grad=traced, differentiable=HAS))


def run(
    x: Tensor, weight: Tensor, offsets: Tensor, impl: str, tokens: Tensor | None = None
) -> Tensor:
    """``grouped_linear`` without gradients; row i is x[tokens[i]] where there are tokens."""
    if impl == "triton":
        return _expert_launch.grouped_linear(x, weight, offsets, tokens)
    x = x if tokens is None else x[tokens]
    y = x.new_empty(len(x), weight.shape[1])
    bounds = offsets.tolist()
    for group, (begin, end) in enumerate(itertools.pairwise(bounds)):
        if begin < end:
            y[begin:end] = linear(x[begin:end], weight[group])
    y[bounds[-1] :] = 0
    return y


def _run(x: Tensor, weight: Tensor, offsets: Tensor, impl: str) -> Tensor:
    return run(x, weight, offsets, impl)


def _run_backward(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    dy: Tensor,
    impl: str,
    wants_x: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight; an empty tensor where none is wanted."""
    dx, dw = x.new_empty(0), x.new_empty(0)
    if wants_x:
        dx = run(dy, weight.transpose(1, 2), offsets, impl)
    if wants_weight and impl == "triton":
        dw = _expert_launch.grouped_weight_grad(x, dy, offsets)
    elif wants_weight:
        dw = torch.zeros_like(weight, memory_format=torch.contiguous_format)
        for group, (begin, end) in enumerate(itertools.pairwise(offsets.tolist())):
            if begin < end:
                torch.mm(dy[begin:end].t(), x[begin:end], out=dw[group])
    return dx, dw


def _fake(x: Tensor, weight: Tensor, offsets: Tensor, impl: str) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


def _fake_backward(
    x: Tensor,
    weight: Tensor,
    offsets: Tensor,
    dy: Tensor,
    impl: str,
    wants_x: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor]:
    dx = x.new_empty(x.shape if wants_x else 0)
    return dx, x.new_empty(weight.shape if wants_weight else 0)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, weight, offsets, ctx.impl = inputs
    ctx.save_for_backward(x, weight, offsets)


def _gradients(
    ctx: Any, backward: Callable[..., Any], dy: Tensor | None
) -> tuple[Tensor | None, ...]:
    if dy is None:
        return None, None, None, None
    wants_x, wants_weight = ctx.needs_input_grad[:2]
    dx, dw = backward(*ctx.saved_tensors, dy, ctx.impl, wants_x, wants_weight)
    return dx if wants_x else None, dw if wants_weight else None, None, None


GROUPED_LINEAR = Operation(
    "grouped_linear",
    run=_run,
    fake=_fake,
    save=_save,
    backward=_run_backward,
    fake_backward=_fake_backward,
    gradients=_gradients,
)


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
