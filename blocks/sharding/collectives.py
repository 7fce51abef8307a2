"""Differentiable collectives, each with the backward that is its conjugate.

Gradients follow one rule: what all ranks hold alike has a gradient that all ranks hold alike; what
is sharded has the gradient of its shard; an addend of a sum has the gradient of the sum. So a loss
that every rank computes alike is one loss, and nothing is counted several times. Only ``identity``
and ``all_gather(..., gradient="partial")`` take in what each rank goes on to use differently: the
gradients that come back are addends, and are summed.
"""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blocks._checks import check
from blocks.sharding.group import Group
from blocks.sharding.placement import run_of


def identity(x: Tensor, group: Group) -> Tensor:
    """``x``, whose gradient is summed over the group: what is alike enters work that differs."""
    return x if group.size == 1 else _apply(_Identity, x, group)


def all_reduce(x: Tensor, group: Group) -> Tensor:
    """The sum over ranks: ``Partial`` becomes ``Replicate``. Backward: identity."""
    return x if group.size == 1 else _apply(_AllReduce, x, group)


def narrow(x: Tensor, group: Group, dim: int) -> Tensor:
    """This rank's run of a dim: ``Replicate`` becomes ``Shard(dim)``. Backward: all-gather."""
    return x if group.size == 1 else _apply(_Narrow, x, group, dim)


def mask(x: Tensor, group: Group) -> Tensor:
    """``x`` on rank 0, zeros elsewhere: ``Replicate`` becomes ``Partial``. Backward: identity."""
    return x if group.size == 1 else _apply(_Mask, x, group)


def all_gather(
    x: Tensor,
    group: Group,
    dim: int,
    *,
    size: int | None = None,
    gradient: Literal["replicate", "partial"] = "replicate",
) -> Tensor:
    """The runs of all ranks behind one another: ``Shard(dim)`` becomes ``Replicate``.

    Args:
        size: of the whole dim, where runs are uneven; default ``group.size`` times this run.
        gradient: ``replicate`` where every rank goes on to do the same with the result; backward
            takes this rank's run. ``partial`` where each does something else; backward is a
            reduce-scatter.
    """
    check(gradient in ("replicate", "partial"), "gradient", "replicate or partial", repr(gradient))
    if group.size == 1:
        return x
    whole = x.shape[dim] * group.size if size is None else size
    held = run_of(whole, group.size, group.rank).size
    check(x.shape[dim] == held, f"size of dim {dim}", f"{held} of {whole}", x.shape[dim])
    return _apply(_AllGather, x, group, dim, whole, gradient)


def reduce_scatter(x: Tensor, group: Group, dim: int) -> Tensor:
    """This rank's run of the sum: ``Partial`` becomes ``Shard(dim)``. Backward: all-gather."""
    return x if group.size == 1 else _apply(_ReduceScatter, x, group, dim)


def all_to_all(
    x: Tensor, group: Group, source_dim: int, target_dim: int, *, size: int | None = None
) -> Tensor:
    """``Shard(source_dim)`` becomes ``Shard(target_dim)``. Backward: the same the other way.

    Args:
        size: of the whole source dim, where runs are uneven; default ``group.size`` times this run.
    """
    check(source_dim != target_dim, "target_dim", "another than source_dim", target_dim)
    if group.size == 1:
        return x
    whole = x.shape[source_dim] * group.size if size is None else size
    held = run_of(whole, group.size, group.rank).size
    what = f"size of dim {source_dim}"
    check(x.shape[source_dim] == held, what, f"{held} of {whole}", x.shape[source_dim])
    return _apply(_AllToAll, x, group, source_dim, target_dim, whole)


def _apply(function: Any, *arguments: Any) -> Tensor:
    return function.apply(*arguments)


def _run(x: Tensor, group: Group, dim: int, rank: int | None = None) -> Tensor:
    run = run_of(x.shape[dim], group.size, group.rank if rank is None else rank)
    return x.narrow(dim, run.start, run.size)


def _gather(x: Tensor, group: Group, dim: int, size: int) -> Tensor:
    """Runs are padded to the longest on the way; the result is as long as they are."""
    longest = -(-size // group.size)
    if x.shape[dim] < longest:
        shape = list(x.shape)
        shape[dim] = longest - x.shape[dim]
        x = torch.cat([x, x.new_zeros(shape)], dim)
    parts = group.all_gather(x.contiguous())
    if longest * group.size > size:
        runs = (run_of(size, group.size, rank) for rank in range(group.size))
        parts = [part.narrow(dim, 0, run.size) for part, run in zip(parts, runs, strict=True)]
    return torch.cat(parts, dim)


def _scatter_sum(x: Tensor, group: Group, dim: int) -> Tensor:
    longest = -(-x.shape[dim] // group.size)
    parts = []
    for rank in range(group.size):
        part = _run(x, group, dim, rank)
        if part.shape[dim] < longest:
            shape = list(x.shape)
            shape[dim] = longest - part.shape[dim]
            part = torch.cat([part, x.new_zeros(shape)], dim)
        parts.append(part.contiguous())
    held = run_of(x.shape[dim], group.size, group.rank).size
    return group.reduce_scatter(parts).narrow(dim, 0, held)


def _exchange(x: Tensor, group: Group, source_dim: int, target_dim: int, size: int) -> Tensor:
    """Pieces go unpadded: every rank knows the shapes."""
    parts = [_run(x, group, target_dim, rank).contiguous() for rank in range(group.size)]
    shapes = []
    for rank in range(group.size):
        shape = list(parts[group.rank].shape)
        shape[source_dim] = run_of(size, group.size, rank).size
        shapes.append(shape)
    return torch.cat(group.all_to_all(parts, shapes), source_dim)


class _Identity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.group.all_reduce(grad.contiguous()), None


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return group.all_reduce(x.contiguous())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class _Narrow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.group, ctx.dim, ctx.size = group, dim, x.shape[dim]
        return _run(x, group, dim).clone(memory_format=torch.contiguous_format)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _gather(grad, ctx.group, ctx.dim, ctx.size), None, None


class _Mask(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return x.clone() if group.rank == 0 else torch.zeros_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int, size: int, gradient: str) -> Tensor:
        ctx.group, ctx.dim, ctx.gradient = group, dim, gradient
        return _gather(x, group, dim, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        if ctx.gradient == "partial":
            found = _scatter_sum(grad, ctx.group, ctx.dim)
        else:
            found = _run(grad, ctx.group, ctx.dim).clone()
        return found, None, None, None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
        ctx.group, ctx.dim, ctx.size = group, dim, x.shape[dim]
        return _scatter_sum(x, group, dim)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _gather(grad, ctx.group, ctx.dim, ctx.size), None, None


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, group: Group, source_dim: int, target_dim: int, size: int
    ) -> Tensor:
        ctx.group, ctx.dims, ctx.size = group, (source_dim, target_dim), x.shape[target_dim]
        return _exchange(x, group, source_dim, target_dim, size)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        source_dim, target_dim = ctx.dims
        found = _exchange(grad, ctx.group, target_dim, source_dim, ctx.size)
        return found, None, None, None, None
