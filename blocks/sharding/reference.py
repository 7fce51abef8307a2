"""The collectives on a list of what the ranks hold, all in one process: the specification.

Each function takes the tensors of all ranks of a group, in rank order, and returns theirs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.sharding.placement import Partial, Placement, Replicate, Shard, run_of
from blocks.sharding.spec import ShardingSpec


def all_reduce(parts: Sequence[Tensor]) -> list[Tensor]:
    """``Partial`` to ``Replicate``."""
    total = torch.stack(list(parts)).sum(0)
    return [total.clone() for _ in parts]


def all_gather(parts: Sequence[Tensor], dim: int) -> list[Tensor]:
    """``Shard(dim)`` to ``Replicate``."""
    return [torch.cat(list(parts), dim) for _ in parts]


def narrow(parts: Sequence[Tensor], dim: int) -> list[Tensor]:
    """``Replicate`` to ``Shard(dim)``."""
    runs = [run_of(parts[0].shape[dim], len(parts), rank) for rank in range(len(parts))]
    return [part.narrow(dim, run.start, run.size) for part, run in zip(parts, runs, strict=True)]


def mask(parts: Sequence[Tensor]) -> list[Tensor]:
    """``Replicate`` to ``Partial``."""
    return [part if rank == 0 else torch.zeros_like(part) for rank, part in enumerate(parts)]


def reduce_scatter(parts: Sequence[Tensor], dim: int) -> list[Tensor]:
    """``Partial`` to ``Shard(dim)``."""
    return narrow(all_reduce(parts), dim)


def all_to_all(parts: Sequence[Tensor], source_dim: int, target_dim: int) -> list[Tensor]:
    """``Shard(source_dim)`` to ``Shard(target_dim)``."""
    return narrow(all_gather(parts, source_dim), target_dim)


def shard(whole: Tensor, spec: ShardingSpec) -> list[Tensor]:
    """What every rank of the mesh holds; of a sum, the first rank along the axis holds all."""
    parts = []
    for rank in spec.mesh.ranks:
        part = whole
        for dim, run in enumerate(spec.runs(whole.shape, rank)):
            part = part.narrow(dim, run.start, run.size)
        coordinates = zip(spec.placements, spec.mesh.coordinates(rank), strict=True)
        if any(isinstance(p, Partial) and at > 0 for p, at in coordinates):
            part = torch.zeros_like(part)
        parts.append(part.clone())
    return parts


def gather(parts: Sequence[Tensor], spec: ShardingSpec) -> Tensor:
    """The whole tensor from what every rank of the mesh holds."""
    held = dict(zip(spec.mesh.ranks, parts, strict=True))
    for axis in reversed(spec.mesh.axes):  # the innermost cut is undone first
        for group in spec.mesh.groups(axis):
            whole = _whole([held[rank] for rank in group], spec.placement(axis))
            held.update(dict.fromkeys(group, whole))
    return held[spec.mesh.ranks[0]]


def _whole(parts: Sequence[Tensor], placement: Placement) -> Tensor:
    if isinstance(placement, Shard):
        return torch.cat(list(parts), placement.dim)
    return parts[0] if placement == Replicate() else torch.stack(list(parts)).sum(0)
