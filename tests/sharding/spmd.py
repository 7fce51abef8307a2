"""A program on several ranks as one differentiable function of whole tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from blocks.sharding import Group, Mesh, Partial, ShardingSpec, run_local
from blocks.sharding.reference import gather, shard

Program = Callable[..., Tensor]
"""(rank, groups, *parts) -> part of the result."""


class _Spmd(torch.autograd.Function):
    """Forward and backward run on all ranks at once, as threads."""

    @staticmethod
    def forward(
        ctx: Any,
        program: Program,
        sources: Sequence[ShardingSpec],
        target: ShardingSpec,
        *wholes: Tensor,
    ) -> Tensor:
        parts = [shard(whole, spec) for whole, spec in zip(wholes, sources, strict=True)]

        def work(rank: int, groups: Mapping[str, Group]) -> tuple[list[Tensor], Tensor]:
            at = target.mesh.ranks.index(rank)
            held = [p[at].detach().requires_grad_(p[at].is_floating_point()) for p in parts]
            with torch.enable_grad():
                return held, program(rank, groups, *held)

        ctx.runs = run_local(target.mesh, work)
        ctx.sources, ctx.target = sources, target
        return gather([output.detach() for _, output in ctx.runs], target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        wanted = shard(grad, gradient_spec(ctx.target))

        def work(rank: int, groups: Mapping[str, Group]) -> list[Tensor | None]:
            at = ctx.target.mesh.ranks.index(rank)
            held, output = ctx.runs[at]
            floats = [part for part in held if part.requires_grad]
            found = list(torch.autograd.grad(output, floats, wanted[at], retain_graph=True))
            return [found.pop(0) if part.requires_grad else None for part in held]

        found = run_local(ctx.target.mesh, work)
        grads = []
        for i, spec in enumerate(ctx.sources):
            parts = [rank_grads[i] for rank_grads in found]
            grads.append(None if parts[0] is None else whole_gradient(parts, spec))
        return None, None, None, *grads


def gradient_spec(spec: ShardingSpec) -> ShardingSpec:
    """How the gradient of a tensor lies: an addend has the gradient of the sum."""
    for axis in spec.mesh.axes:
        if isinstance(spec.placement(axis), Partial):
            spec = spec.replace(axis, ShardingSpec.replicated(spec.mesh).placement(axis))
    return spec


def whole_gradient(parts: list[Any], spec: ShardingSpec) -> Tensor:
    """Puts the parts together; those that should be alike must be."""
    spec = gradient_spec(spec)
    whole = gather(parts, spec)
    for part, expected in zip(parts, shard(whole, spec), strict=True):
        assert torch.equal(part, expected), "ranks disagree on a gradient they share"
    return whole


def spmd(
    program: Program, sources: Sequence[ShardingSpec], target: ShardingSpec, *wholes: Tensor
) -> Tensor:
    """The whole result; differentiable in ``wholes``."""
    function: Any = _Spmd.apply
    return function(program, sources, target, *wholes)


def line(size: int) -> Mesh:
    """A mesh with the one axis ``tensor``."""
    return Mesh.of(tensor=size)
