"""Processes that save and load tensors spread over device meshes."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor

from recipes.train.checkpoint import (
    Checkpoint,
    CheckpointWriter,
    GroupRanks,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)
from tests.forked import run_forked


def whole(name: str) -> Tensor:
    """The values of a tensor, known to every process."""
    shapes = {"even": (8, 4), "uneven": (7, 5), "short": (3,), "shared": (6,), "moment": (8, 4)}
    generator = torch.Generator().manual_seed(sorted(shapes).index(name))
    return torch.randn(shapes[name], generator=generator)


Layout = dict[str, tuple[tuple[int, ...], tuple[Placement, ...]]]
ONE: Layout = {
    "even": ((2, 2), (Shard(0), Shard(1))),
    "uneven": ((4,), (Shard(0),)),
    "short": ((4,), (Shard(0),)),  # the last rank has none of it
    "shared": ((4,), (Replicate(),)),
    "moment": ((2, 2), (Replicate(), Shard(0))),
}
OTHER: Layout = {
    "even": ((4,), (Shard(1),)),
    "uneven": ((2, 2), (Shard(1), Shard(0))),
    "short": ((2, 2), (Replicate(), Shard(0))),
    "shared": ((4,), (Shard(0),)),
    "moment": ((4,), (Replicate(),)),
}


def spread(layout: Layout) -> dict[str, Tensor]:
    """Every tensor laid out, and one of this rank alone."""
    tensors: dict[str, Tensor] = {}
    for name, (shape, placements) in layout.items():
        mesh = init_device_mesh("cpu", shape)
        tensors[name] = distribute_tensor(whole(name), mesh, placements)
    tensors[f"only{dist.get_rank()}"] = torch.full((2,), float(dist.get_rank()))
    return tensors


def check_load(root: Path, ranks: GroupRanks, layout: Layout, step: int) -> None:
    found = load_latest(root, ranks=ranks)
    assert found is not None
    assert found.step == step, found.step
    targets = spread(layout)
    for tensor in targets.values():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        local.fill_(torch.nan)
    found.tensors.read_into(targets)
    for name, tensor in targets.items():
        if isinstance(tensor, DTensor):
            assert torch.equal(tensor.full_tensor(), whole(name)), name
        else:
            assert torch.equal(tensor, torch.full((2,), float(ranks.rank))), name


def save_and_load(rank: int, folder: Path) -> None:
    """What every process does."""
    ranks = GroupRanks.of_world()
    root = folder / "checkpoints"
    with CheckpointWriter(root, ranks=ranks) as writer:
        for step in (1, 2, 3):
            writer.save(Checkpoint(step, spread(ONE), {"by": rank}))
            dist.all_reduce(torch.ones(100))  # the step goes on, on another group
    check_load(root, ranks, OTHER, 3)
    with CheckpointWriter(root, ranks=ranks) as writer:
        writer.save(Checkpoint(4, spread(OTHER), {"by": rank}))
    check_load(root, ranks, ONE, 4)
    check_load(folder / "by_one", ranks, ONE, 9)


def test_meshes_of_real_processes_save_and_load_in_each_others_layouts(tmp_path):
    all_whole = {name: whole(name) for name in ONE}
    alone = {f"only{rank}": torch.full((2,), float(rank)) for rank in range(4)}
    save_checkpoint(tmp_path / "by_one", Checkpoint(9, all_whole | alone, {}))
    run_forked(4, lambda rank: save_and_load(rank, tmp_path), timeout_s=100)
    for step in (3, 4):
        found = load_checkpoint(tmp_path / "checkpoints" / f"step-{step:08d}")
        assert found.state == {"by": 0}
        for name, tensor in (all_whole | alone).items():
            assert torch.equal(found.tensors[name], tensor), name
