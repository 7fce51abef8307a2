"""The same planned job on threads of one process, on forked processes, and under torchrun."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from blocks._checks import check
from blocks.pipeline import DistributedTransport, in_process_transports
from blocks.sharding import Group, axis_groups, make_device_mesh, run_local
from recipes.plan.execute.job import PlannedJob
from recipes.plan.execute.planned_pipeline import PlannedPipeline
from recipes.plan.ranks import run_ranks

T = TypeVar("T")
Work = Callable[[PlannedPipeline], T]
"""What every device does with its share of the job; all call the same methods alike."""


def on_threads(job: PlannedJob, work: Work[T], *, timeout_s: float = 60.0) -> list[T]:
    """Every device a thread of this process.

    Args:
        timeout_s: longest wait of a device for the others in one collective.

    Returns:
        What the devices returned, in the order of ``job.meshes`` and their ranks.
    """
    wires = in_process_transports(job.num_devices)

    def run(device: int, groups: Mapping[str, Group]) -> T:
        try:
            return work(job.pipeline(device, groups, wires[device]))
        except BaseException as error:
            wires[device].give_up(f"device {device} failed: {error!r}")
            raise

    return run_local(job.meshes, run, timeout_s=timeout_s)


def in_process_group(
    job: PlannedJob,
    work: Callable[[PlannedPipeline, DeviceMesh], T],
    *,
    where: torch.device | str = "cpu",
) -> T | None:
    """This process as the device of its rank, in a job of torch.distributed: torchrun, forks.

    Every rank of the job calls it. ``work`` is also given the device's mesh as torch knows it.

    Args:
        where: what this process computes on: the CPU, or its accelerator where the job's backend
            speaks about what lies there, such as ``cpu:gloo,cuda:nccl``.

    Returns:
        What ``work`` returned; None on ranks that the job leaves idle.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    check(job.num_devices <= world, "processes", f"{job.num_devices} or more", world)
    own: DeviceMesh | None = None
    for mesh in job.meshes:  # all ranks make all groups, in one order
        made = make_device_mesh(mesh, torch.device(where).type)
        own = made if rank in mesh.ranks else own
    found = None
    if own is not None:
        channels = job.routes.channels
        device = where if channels else "cpu"  # statuses alone go by the store
        with DistributedTransport(device=device, channels=channels, name="planned") as wire:
            found = work(job.pipeline(rank, axis_groups(own), wire, where=where), own)
    dist.barrier()  # nobody leaves while another still talks to it
    return found


def on_forks(
    job: PlannedJob,
    work: Callable[..., T],
    *,
    timeout_s: float = 120.0,
    hear: Callable[[Any], None] | None = None,
) -> list[T | None]:
    """Every device a process that is forked from this one and talks over gloo.

    Args:
        work: given the pipeline and the mesh as torch knows it; its result is pickled.
        timeout_s: after which they are killed, counted anew whenever one of them tells something.
        hear: called here with what devices tell while they work; ``work`` is then also given
            ``tell``, by name.

    Returns:
        What the devices returned, by number; None for those that the job leaves idle.

    Raises:
        RuntimeError: with the traceback of the first that failed.
        TimeoutError: they are late.
    """

    def on_device(device: torch.device, **by_name: Any) -> T | None:
        return in_process_group(job, functools.partial(work, **by_name))

    return run_ranks(job.num_devices, on_device, (), "cpu", timeout_s=timeout_s, hear=hear)
