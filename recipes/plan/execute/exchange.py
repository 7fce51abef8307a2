"""Collectives of a planned step: without autograd, which the plan has spelled out already."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from blocks.sharding import Group, ShardingSpec, Step, plan_reshard, run_step


def run_steps(
    x: Tensor,
    shape: Sequence[int],
    steps: Sequence[Step],
    rank: int,
    groups: Mapping[str, Group],
) -> Tensor:
    """A rank's part of a tensor of ``shape`` after the steps of a reshard plan."""
    for step in steps:
        x = run_step(x, shape, step, rank, groups[step.axis])
    return x


def to_whole(
    x: Tensor,
    shape: Sequence[int],
    spec: ShardingSpec,
    rank: int,
    groups: Mapping[str, Group],
) -> Tensor:
    """The whole tensor, from what the ranks hold under ``spec``."""
    steps = plan_reshard(spec, ShardingSpec.replicated(spec.mesh))
    return run_steps(x, shape, steps, rank, groups)
