"""Checkpoints of planned training, which any other plan of the model can go on from.

A checkpoint holds whole tensors, as ``torch.distributed.checkpoint`` writes them: every rank its
parts, each once. So stages, meshes and placements of the plan that reads it may be any.
"""

import contextlib
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from blocks._checks import check
from blocks.sharding import ShardingSpec, torch_placements
from recipes.plan.execute.planned_module import PlannedModule
from recipes.plan.execute.planned_pipeline import PlannedPipeline

NUM_UPDATES = "num_updates"
_LOCK = threading.Lock()
"""Warnings are filtered for the whole process, so one thread at a time."""


def state_dict(pipeline: PlannedPipeline, device_mesh: DeviceMesh) -> dict[str, Any]:
    """Parameters, buffers and moments of a device's stages, as tensors that know how they lie.

    They share memory with those of the pipeline.

    Args:
        device_mesh: that of the device's stages, as torch knows it.

    Returns:
        ``DTensor`` by ``model.NAME`` and ``optimizer.NAME.MOMENT``.
    """
    found: dict[str, Any] = {}
    for module in pipeline.modules.values():
        for key, part, shape, spec in _entries(module):
            found[key] = _dtensor(part, shape, spec, device_mesh)
    return found


def save(pipeline: PlannedPipeline, device_mesh: DeviceMesh, folder: str | Path) -> None:
    """Write a checkpoint; a call of all devices of a job of torch.distributed."""
    state = state_dict(pipeline, device_mesh) | {NUM_UPDATES: _num_updates(pipeline)}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(str(folder)))


def load(pipeline: PlannedPipeline, device_mesh: DeviceMesh, folder: str | Path) -> None:
    """Read a checkpoint of any plan of the model; a call of all devices of the job.

    Raises:
        ValueError: no checkpoint there, or one that lacks tensors of this device.
    """
    state = state_dict(pipeline, device_mesh) | {NUM_UPDATES: _num_updates(pipeline)}
    _check_complete(Path(folder), state)
    dcp.load(state, storage_reader=dcp.FileSystemReader(str(folder)))
    _set_num_updates(pipeline, state[NUM_UPDATES])


def whole_state(pipeline: PlannedPipeline) -> dict[str, Tensor]:
    """The entries of ``state_dict`` whole, where there is no torch.distributed: threads."""
    found = {NUM_UPDATES: _num_updates(pipeline)}
    for module in pipeline.modules.values():
        for key, part, shape, spec in _entries(module):
            whole = ShardingSpec.replicated(spec.mesh)
            found[key] = module.machine.moved(part, shape, spec, whole)
    return found


def save_whole(state: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write the states of all stages, joined, from one process."""
    with _alone():
        dcp.save(dict(state), storage_writer=dcp.FileSystemWriter(str(folder)), no_dist=True)


def load_whole(pipeline: PlannedPipeline, folder: str | Path) -> None:
    """Read a device's parts from a checkpoint of any plan, without torch.distributed.

    Raises:
        ValueError: no checkpoint there, or one that lacks tensors of this device.
    """
    state: dict[str, Any] = {NUM_UPDATES: _num_updates(pipeline)}
    entries = [entry for module in pipeline.modules.values() for entry in _entries(module)]
    for key, part, shape, _ in entries:
        state[key] = torch.empty(shape, dtype=part.dtype)
    _check_complete(Path(folder), state)
    with _alone():
        dcp.load(state, storage_reader=dcp.FileSystemReader(str(folder)), no_dist=True)
    machines = [module.machine for module in pipeline.modules.values()]
    for key, part, _, spec in entries:
        part.copy_(machines[0].cut(state[key], spec))
    _set_num_updates(pipeline, state[NUM_UPDATES])


def _check_complete(folder: Path, wanted: Mapping[str, Tensor]) -> None:
    """Before anything is read: torch would say which key it lacks, and not what to do."""
    check((folder / ".metadata").is_file(), "folder", "a checkpoint of a planned run", str(folder))
    stored = dcp.FileSystemReader(str(folder)).read_metadata().state_dict_metadata
    missing = [key for key in wanted if key not in stored]
    got = f"no {missing[0]}, and {len(missing) - 1} more missing" if missing else ""
    hint = "read one of the same model, trained by the same optimizer in the same dtype"
    check(not missing, f"tensors of {folder}", "all of the plan's", got, hint)
    for key, tensor in wanted.items():
        there = tuple(getattr(stored[key], "size", ()))
        same = there == tuple(tensor.shape)
        check(same, f"{key} of {folder}", tuple(tensor.shape), there, "of another model")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Torch warns of what is asked for here: a checkpoint of one process."""
    with _LOCK, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def _entries(
    module: PlannedModule,
) -> list[tuple[str, Tensor, tuple[int, ...], ShardingSpec]]:
    """(key, this rank's part, shape of the whole, how it lies)."""
    machine, state = module.machine, module.state
    found = [
        (f"model.{name}", part, machine.shape(name), machine.spec(name))
        for name, part in {**state.parameters, **state.buffers}.items()
    ]
    for name, moments in state.moments.items():
        spec = state.update_spec(name)
        found += [
            (f"optimizer.{name}.{moment}", part, machine.shape(name), spec)
            for moment, part in moments.items()
        ]
    return found


def _dtensor(
    part: Tensor, shape: tuple[int, ...], spec: ShardingSpec, device_mesh: DeviceMesh
) -> DTensor:
    stride = torch.empty(shape, device="meta").stride()
    placements = torch_placements(spec)
    return DTensor.from_local(
        part, device_mesh, placements, run_check=False, shape=torch.Size(shape), stride=stride
    )


def _num_updates(pipeline: PlannedPipeline) -> Tensor:
    return torch.tensor(max(m.num_updates for m in pipeline.modules.values()))


def _set_num_updates(pipeline: PlannedPipeline, number: Tensor) -> None:
    for module in pipeline.modules.values():
        module.num_updates = int(number)
