"""The groups of a placement as processes of this machine, each on the cores it is given."""

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

from blocks.sched.placement import Placement
from recipes.place.group import (
    GroupHandle,
    GroupProcess,
    GroupSpec,
    Listener,
    Replica,
    StartGroup,
    exec_group,
)


@contextlib.asynccontextmanager
async def local_groups(
    placement: Placement,
    folders: Mapping[str, Path],
    limits: GroupSpec,
    *,
    core_of: Sequence[int] | None = None,
    start: StartGroup = exec_group,
    step_logs: Sequence[Path] = (),
) -> AsyncIterator[list[GroupHandle]]:
    """Start every group, load its models, and end them all.

    Args:
        placement: with ``kv_tokens``.
        folders: of the models.
        limits: engine limits of every group.
        core_of: for each device the processor core that its rank runs on, and on no other; a
            group's processes share the cores of its devices. None leaves them to the machine.
        start: brings a group's process to life.
        step_logs: for each group the file that its steps are written to; empty for none.

    Raises:
        LoadFailed, GroupLost: a model that does not load, a process that does not come up.
    """
    listener = await Listener.open()
    try:
        handles = []
        for at, group in enumerate(placement.groups):
            spec = dataclasses.replace(
                limits,
                group=f"g{at}",
                devices=group.devices,
                tp=group.configuration.op,
                pp=group.configuration.pp,
                step_log=str(step_logs[at]) if step_logs else "",
            )
            cores = None if core_of is None else {core_of[device] for device in group.devices}
            handles.append(listener.start(spec, _on(cores, start)))
        await asyncio.gather(*(handle.ready() for handle in handles))
        for handle, group in zip(handles, placement.groups, strict=True):
            for model in group.models:
                room = group.kv_tokens_of(model)
                await handle.load(Replica(model, str(folders[model]), room))
        yield handles
    finally:
        await listener.close()


def _on(cores: set[int] | None, start: StartGroup) -> StartGroup:
    """Processes inherit the cores that their parent may run on."""
    if cores is None:
        return start

    def started(spec: GroupSpec) -> GroupProcess:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)
        try:
            return start(spec)
        finally:
            os.sched_setaffinity(0, before)

    return started
