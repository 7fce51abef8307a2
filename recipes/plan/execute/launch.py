"""The same planned job on threads of one process, on forked processes, and under torchrun."""

import multiprocessing
import os
import pickle
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from blocks._checks import check
from blocks.pipeline import DistributedTransport, in_process_transports
from blocks.sharding import Group, axis_groups, make_device_mesh, run_local
from recipes.plan.execute.job import PlannedJob
from recipes.plan.execute.planned_pipeline import PlannedPipeline

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


def in_process_group(job: PlannedJob, work: Callable[[PlannedPipeline, DeviceMesh], T]) -> T | None:
    """This process as the device of its rank, in a job of torch.distributed: torchrun, forks.

    Every rank of the job calls it. ``work`` is also given the device's mesh as torch knows it.

    Returns:
        What ``work`` returned; None on ranks that the job leaves idle.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    check(job.num_devices <= world, "processes", f"{job.num_devices} or more", world)
    own: DeviceMesh | None = None
    for mesh in job.meshes:  # all ranks make all groups, in one order
        made = make_device_mesh(mesh)
        own = made if rank in mesh.ranks else own
    found = None
    if own is not None:
        with DistributedTransport(name="planned") as wire:
            found = work(job.pipeline(rank, axis_groups(own), wire), own)
    dist.barrier()  # nobody leaves while another still talks to it
    return found


def on_forks(
    job: PlannedJob,
    work: Callable[[PlannedPipeline, DeviceMesh], T],
    folder: Path,
    *,
    timeout_s: float = 120.0,
) -> list[T | None]:
    """Every device a process that is forked from this one and talks over gloo.

    Args:
        work: its result is pickled.
        folder: for the file the processes find one another by.
        timeout_s: after which they are killed.

    Returns:
        What the devices returned, by number; None for those that the job leaves idle.

    Raises:
        RuntimeError: one failed, with its traceback, or they are late.
    """
    context = multiprocessing.get_context("fork")
    store = folder / f"store-{os.getpid()}-{time.monotonic_ns()}"
    ends = [context.Pipe(duplex=False) for _ in range(job.num_devices)]
    processes = [
        context.Process(target=_forked, args=(rank, job, work, str(store), writer))
        for rank, (_, writer) in enumerate(ends)
    ]
    try:
        for process in processes:
            process.start()
        until = time.monotonic() + timeout_s
        found: list[T | None] = []
        for rank, (reader, _) in enumerate(ends):
            if not reader.poll(max(0.0, until - time.monotonic())):
                raise RuntimeError(f"device {rank}: expected an end in {timeout_s} s, got none")
            ok, value = pickle.loads(reader.recv_bytes())
            if not ok:
                raise RuntimeError(f"device {rank} failed:\n{value}")
            found.append(value)
        return found
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _forked(
    rank: int,
    job: PlannedJob,
    work: Callable[[PlannedPipeline, DeviceMesh], T],
    store: str,
    writer: Connection,
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=job.num_devices
        )
        message = (True, in_process_group(job, work))
    except BaseException:
        message = (False, traceback.format_exc())
    writer.send_bytes(pickle.dumps(message))  # by value: shared memory would go with the process
    writer.close()
    time.sleep(0.2)  # the reader has it before the process goes
    os._exit(0)
