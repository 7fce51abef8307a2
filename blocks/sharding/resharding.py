"""``reshard``: from one sharding to another, differentiable."""

import functools
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from blocks._checks import check
from blocks.sharding import collectives
from blocks.sharding.group import Group
from blocks.sharding.placement import Replicate, Shard
from blocks.sharding.reshard_plan import Step, plan_reshard
from blocks.sharding.spec import ShardingSpec


def reshard(
    x: Tensor,
    shape: Sequence[int],
    source: ShardingSpec,
    target: ShardingSpec,
    rank: int,
    groups: Mapping[str, Group],
) -> Tensor:
    """What a rank holds of a tensor under ``target``, from what it holds under ``source``.

    Runs the steps of ``plan_reshard``. The gradient goes back from ``target`` to ``source``.

    Args:
        x: this rank's part.
        shape: of the whole tensor.
        source, target: on one mesh.
        rank: the rank in that mesh.
        groups: for every axis of the mesh, the group the rank is in.

    Raises:
        ValueError: a part of another shape than ``source`` gives the rank.
    """
    held = source.local_shape(shape, rank)
    check(tuple(x.shape) == held, f"shape of rank {rank}'s part", list(held), list(x.shape))
    for step in plan_reshard(source, target):
        x = run_step(x, shape, step, rank, groups[step.axis])
    return x


def run_step(x: Tensor, shape: Sequence[int], step: Step, rank: int, group: Group) -> Tensor:
    """What a rank holds of a tensor of ``shape`` after one step, from what it held before.

    Differentiable, as ``reshard`` is.

    Args:
        group: the rank's along the axis of the step.
    """
    return prepare_step(shape, step, rank)(x, group)


def prepare_step(shape: Sequence[int], step: Step, rank: int) -> Callable[[Tensor, Group], Tensor]:
    """``run_step`` for many tensors: sizes are worked out once."""
    before, after = step.source, step.target
    sizes = step.before.replace(step.axis, Replicate()).local_shape(shape, rank)
    if isinstance(before, Shard):
        size = sizes[before.dim]
        if isinstance(after, Shard):
            dims = {"source_dim": before.dim, "target_dim": after.dim}
            return functools.partial(collectives.all_to_all, **dims, size=size)
        return functools.partial(collectives.all_gather, dim=before.dim, size=size)
    if isinstance(after, Shard):
        change = collectives.narrow if before == Replicate() else collectives.reduce_scatter
        return functools.partial(change, dim=after.dim)
    return collectives.mask if before == Replicate() else collectives.all_reduce
