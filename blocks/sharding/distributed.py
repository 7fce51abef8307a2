"""``DistributedGroup`` over torch.distributed, and meshes as torch's ``DeviceMesh``."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import placement_types

from blocks._checks import check
from blocks.sharding.group import Group, sum_in_order
from blocks.sharding.mesh import Mesh
from blocks.sharding.placement import Partial, Replicate, Shard
from blocks.sharding.spec import ShardingSpec
from blocks.sharding.waits import Waits


class DistributedGroup:
    """A ``Group`` over a process group of torch.distributed (gloo, NCCL).

    Args:
        process_group: None takes the default group, all ranks.
        ordered: add in rank order, in float32 inside, so that bits depend neither on the backend
            nor on its algorithm; the parts travel by ``all_to_all``, as many bytes as before. Else
            the backend adds as it likes, on every rank the same.
        report_after_s: say so where this rank waits for the others in a collective for longer.
        on_report: who is told; default: a line on standard error.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        *,
        ordered: bool = False,
        report_after_s: float | None = None,
        on_report: Callable[[str], None] | None = None,
    ) -> None:
        self.process_group = process_group
        self.ordered = ordered
        self.rank, self.size = dist.get_rank(process_group), dist.get_world_size(process_group)
        self._waits = None
        if report_after_s is not None:
            members = process_group if process_group is not None else dist.group.WORLD
            ranks = dist.get_process_group_ranks(members)
            self._waits = Waits(dist.get_rank(), ranks, report_after_s, on_report)

    def _call(self, name: str, *arguments: Any, **options: Any) -> None:
        """A collective of torch.distributed, watched."""
        collective = getattr(dist, name)
        if self._waits is None:
            collective(*arguments, group=self.process_group, **options)
            return
        self._waits.begin(name)
        try:
            collective(*arguments, group=self.process_group, **options)
        finally:
            self._waits.end()

    def all_reduce(self, tensor: Tensor) -> Tensor:
        if self.size == 1:
            return tensor.clone()
        if not self.ordered:
            total = tensor.clone()
            self._call("all_reduce", total)
            return total
        part = -(-tensor.numel() // self.size)
        padded = tensor.new_zeros(self.size * part)
        padded[: tensor.numel()] = tensor.flatten()
        parts = self.all_gather(self.reduce_scatter(padded.chunk(self.size)))
        return torch.cat(parts)[: tensor.numel()].view(tensor.shape)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        found = tensor.clone()
        if self.size > 1:
            self._call("all_reduce", found, op=dist.ReduceOp.MAX)
        return found

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        self._call("all_gather", parts, tensor)
        return parts

    def reduce_scatter(self, parts: Sequence[Tensor]) -> Tensor:
        if self.ordered or self.size == 1:
            return sum_in_order(self.all_to_all(parts, [parts[0].shape] * self.size))
        total = torch.empty_like(parts[0])
        self._call("reduce_scatter", total, list(parts))
        return total

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        flat = torch.cat([part.flatten() for part in parts])
        sizes = [torch.Size(shape).numel() for shape in shapes]
        received = flat.new_empty(sum(sizes))
        given = [part.numel() for part in parts]
        self._call("all_to_all_single", received, flat, sizes, given)
        return [
            piece.view(tuple(shape))
            for piece, shape in zip(received.split(sizes), shapes, strict=True)
        ]


def make_device_mesh(mesh: Mesh, device_type: str = "cpu") -> DeviceMesh:
    """The mesh as torch knows it, with a process group for every axis.

    Every rank of the job calls it, in the same order among calls that make groups.
    """
    world = dist.get_world_size()
    expected = f"ranks below {world}, the size of the job"
    check(max(mesh.ranks) < world, "mesh", expected, mesh)
    grid = torch.tensor(mesh.ranks).view(mesh.sizes)
    return DeviceMesh(device_type, grid, mesh_dim_names=mesh.axes)


def axis_groups(device_mesh: DeviceMesh, *, ordered: bool = False) -> Mapping[str, Group]:
    """For every axis of the mesh, the group this rank is in."""
    names = device_mesh.mesh_dim_names or ()
    check(bool(names), "device_mesh", "named axes", "none", "see make_device_mesh")
    return {name: DistributedGroup(device_mesh.get_group(name), ordered=ordered) for name in names}


def torch_placements(spec: ShardingSpec) -> tuple[placement_types.Placement, ...]:
    """The placements as torch's ``DTensor`` takes them."""
    kinds = {Replicate: placement_types.Replicate, Partial: placement_types.Partial}
    return tuple(
        placement_types.Shard(p.dim) if isinstance(p, Shard) else kinds[type(p)]()
        for p in spec.placements
    )
