"""``PlannedJob``: all that the devices of a planned run have in common."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from blocks.pipeline import Schedule, TraceEvent, Transport
from blocks.sharding import Group, Mesh
from blocks.sharding.cross_mesh import Mode
from recipes.plan.execute.machine import Operations
from recipes.plan.execute.optimizer import Optimizer
from recipes.plan.execute.planned_pipeline import PlannedPipeline, meshes_of
from recipes.plan.execute.routes import Routes, StageProgram, routes


@dataclasses.dataclass(frozen=True)
class PlannedJob:
    """A planned run, whatever its devices are: threads, forked processes, a torchrun job.

    stages, schedule, operations, recompute, seed: see ``PlannedPipeline``.
    state: whole parameters and buffers by name; on the meta device where a checkpoint follows.
    optimizer: default AdamW.
    mode: how ranks that want the same part of a value from another stage get it.
    """

    stages: tuple[StageProgram, ...]
    schedule: Schedule
    operations: Operations
    state: Mapping[str, Tensor]
    optimizer: Optimizer | None = None
    recompute: tuple[int, ...] = ()
    seed: int = 0
    mode: Mode = "send_recv"

    @functools.cached_property
    def routes(self) -> Routes:
        """What moves between the stages."""
        return routes(self.stages, self.schedule.num_sequences, mode=self.mode)

    @functools.cached_property
    def meshes(self) -> tuple[Mesh, ...]:
        """The mesh of every rank of the pipeline."""
        return tuple(meshes_of(self.stages, self.schedule))

    @property
    def num_devices(self) -> int:
        """The largest number of a device, and one."""
        return 1 + max(device for mesh in self.meshes for device in mesh.ranks)

    def pipeline(
        self,
        device: int,
        groups: Mapping[str, Group],
        wire: Transport,
        *,
        where: torch.device | str = "cpu",
        on_event: Callable[[TraceEvent], None] | None = None,
    ) -> PlannedPipeline:
        """One device's share; see ``PlannedPipeline``."""
        return PlannedPipeline(
            self.stages,
            self.schedule,
            self.routes,
            self.operations,
            device,
            groups,
            wire,
            self.state,
            optimizer=self.optimizer,
            recompute=self.recompute,
            seed=self.seed,
            where=where,
            on_event=on_event,
        )
