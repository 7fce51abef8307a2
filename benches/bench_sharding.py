"""What deciding and cutting cost: resharding plans, local shapes, sums of shared gradients."""

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from blocks.sharding import (
    Cut,
    Group,
    Mesh,
    Partial,
    Replicate,
    Shard,
    ShardingSpec,
    cut_tensor,
    join_tensors,
    plan_reshard,
    run_local,
    sum_shared,
)

KINDS = (Replicate(), Shard(0), Shard(1), Partial())
MESHES = (Mesh.of(tensor=8), Mesh.of(data=8, tensor=8), Mesh.of(data=8, pipeline=8, tensor=8))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def bench_plans(benchmark: Any, mesh: Mesh) -> None:
    """All pairs of shardings of a matrix over up to three axes, plans and bytes."""
    specs = [ShardingSpec(mesh, p) for p in itertools.product(KINDS, repeat=len(mesh.axes))][:16]

    def plan_all() -> int:
        return sum(
            step.bytes((4096, 4096), 2)
            for source, target in itertools.product(specs, specs)
            for step in plan_reshard(source, target)
        )

    assert plan_all() > 0
    benchmark(plan_all)
    if not benchmark.disabled:
        benchmark.extra_info["us_per_plan"] = benchmark.stats.stats.median / len(specs) ** 2 * 1e6


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def bench_local_shapes(benchmark: Any, mesh: Mesh) -> None:
    """The shape every rank holds of a matrix."""
    spec = ShardingSpec(mesh, (Shard(0),) * len(mesh.axes))

    def shapes() -> int:
        return sum(spec.local_shape((4099, 7), rank)[0] for rank in mesh.ranks)

    assert shapes() == 4099
    benchmark(shapes)


def bench_fused_matrix(benchmark: Any) -> None:
    """Query, key and value of 16 heads and 4 shared ones, taken apart for 8 ranks and joined."""
    heads = Cut.even(0, 16 * 64, 8)
    shared = Cut.of_units(0, 64, [[rank // 2] for rank in range(8)])
    cut, whole = Cut.of_parts(0, [heads, shared, shared]), torch.randn(24 * 64, 1024)

    def there_and_back() -> torch.Tensor:
        return join_tensors([cut_tensor(whole, cut, rank) for rank in range(8)], cut)

    assert torch.equal(there_and_back(), whole)
    benchmark(there_and_back)


def bench_shared_gradients(benchmark: Any) -> None:
    """Copies of one key and value head on two ranks (threads), their gradients summed."""
    cut = Cut.of_parts(0, [Cut.even(0, 512, 2), Cut.whole(0, 128, 2)])

    def work(rank: int, groups: Mapping[str, Group]) -> torch.Tensor:
        grad = torch.ones(cut.local_size(rank), 512)
        sum_shared(grad, cut, groups["tensor"])
        return grad

    first, second = run_local(Mesh.of(tensor=2), work)
    assert torch.equal(first, second)
    assert first.sum() == 512 * (256 + 2 * 128)
    benchmark(run_local, Mesh.of(tensor=2), work)
