"""``PlannedPipeline``: one device's share of a training step that is cut into stages."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from blocks._checks import check
from blocks.pipeline import Executor, Kind, Schedule, TraceEvent, Transport
from blocks.sharding import Group, Mesh
from recipes.plan.execute.cross_mesh_transport import TOKEN, CrossMeshTransport, Parcels
from recipes.plan.execute.machine import Operations
from recipes.plan.execute.optimizer import Optimizer
from recipes.plan.execute.planned_module import Microbatch, PlannedModule
from recipes.plan.execute.planned_stage import PlannedStage
from recipes.plan.execute.routes import Routes, StageProgram


class PlannedPipeline:
    """The stages of one device, driven by ``blocks.pipeline.Executor``.

    Every device of a stage's mesh has one; all call ``step`` alike.

    Invariants, between steps:
        1. Nothing is under way between stages.
        2. Those of the stages' ``PlannedModule``.
    """

    def __init__(
        self,
        stages: Sequence[StageProgram],
        schedule: Schedule,
        routes: Routes,
        operations: Operations,
        device: int,
        groups: Mapping[str, Group],
        wire: Transport,
        state: Mapping[str, Tensor],
        *,
        optimizer: Optimizer | None = None,
        recompute: Collection[int] = (),
        seed: int = 0,
        where: torch.device | str = "cpu",
        on_event: Callable[[TraceEvent], None] | None = None,
    ) -> None:
        """
        Args:
            stages: all of them; those of one pipeline rank have one mesh.
            schedule: of the pipeline: sequences are microbatches of one slice.
            routes: of ``stages``.
            operations: what the nodes compute.
            device: this one, as the meshes number them.
            groups: for every axis of its mesh the group the device is in.
            wire: between all devices.
            state: whole parameters and buffers by name.
            recompute: stages that keep only what they received, and do the forward pass again.
            where: the torch device that the stages compute on.
            on_event: told of every action of the schedule that was done.

        Raises:
            ValueError: a device in no stage, stages of a rank on different meshes, a schedule of
                another number of stages or out of order.
        """
        count = len(stages)
        meshes = meshes_of(stages, schedule)
        _check_in_order(schedule)
        mine = [rank for rank, mesh in enumerate(meshes) if device in mesh.ranks]
        check(len(mine) == 1, f"pipeline ranks of device {device}", "one", mine)
        (self.rank,) = mine
        self._parcels = Parcels()
        self.modules = {
            at: PlannedModule(
                stages[at].program,
                operations,
                device,
                groups,
                state,
                optimizer=optimizer,
                seed=seed,
                device=where,
            )
            for at in range(count)
            if schedule.placement[at] == self.rank
        }
        self._stages = {
            at: PlannedStage(at, stages[at], module, routes, self._parcels)
            for at, module in self.modules.items()
        }
        first = [mesh.ranks[0] for mesh in meshes]
        self.schedule = dataclasses.replace(schedule, edges=routes.edges)
        self.speaks = device == first[self.rank]  # for the devices of its mesh, which do the same
        self._executor = Executor(
            self.rank,
            self.schedule,
            self._stages,
            CrossMeshTransport(self.rank, first, device, routes, self._parcels, wire, where),
            wire=lambda *_: [TOKEN],
            recompute=recompute,
            seed=seed,
            on_event=on_event,
        )

    def step(
        self, microbatches: Sequence[Microbatch], *, loss_scale: float | None = None
    ) -> Tensor | None:
        """One step of the optimizer, see ``PlannedModule.step``.

        Returns:
            The sum of the losses times ``loss_scale`` on devices of the stage that has the loss;
            None on others.
        """
        loss = self.accumulate(microbatches, loss_scale=loss_scale)
        self.update()
        return loss

    def accumulate(
        self, microbatches: Sequence[Microbatch], *, loss_scale: float | None = None
    ) -> Tensor | None:
        """Forward and backward of all microbatches; the gradients are there after it."""
        scale = 1 / len(microbatches) if loss_scale is None else loss_scale
        for stage in self._stages.values():
            stage.loss_scale = scale
            stage.begin_step()
        bounds = [(0, 1)] * len(microbatches)
        result = self._executor.step(microbatches, bounds, loss_scale=scale)
        self._parcels.check_empty()
        return result.loss() * scale if result.losses else None

    def losses(self, microbatches: Sequence[Microbatch]) -> list[float] | None:
        """The loss of every microbatch, however many; nothing is kept of them.

        Returns:
            None on devices of other stages than the one that has the loss.
        """
        for stage in self._stages.values():
            stage.begin_step()
        bounds = [(0, 1)] * len(microbatches)
        found = self._executor.forward_only(microbatches, bounds).losses
        self._parcels.check_empty()
        if not found:
            return None
        return torch.stack([found[key] for key in sorted(found)]).tolist()

    def reduce(self) -> dict[str, Tensor]:
        """Gradients of this device's stages as their updates take them, see ``PlannedModule``."""
        return {n: g for module in self.modules.values() for n, g in module.reduce().items()}

    def update(self, new: Callable[[str], Tensor] | None = None) -> None:
        """The optimizer's step of all stages of this device, see ``PlannedModule``."""
        for module in self.modules.values():
            module.update(new)

    def drop(self) -> None:
        """Forget the gradients: a step that is not taken."""
        for module in self.modules.values():
            module.drop()

    def gradients(self) -> dict[str, Tensor]:
        """Whole gradients of this device's stages, by parameter."""
        return {n: g for module in self.modules.values() for n, g in module.gradients().items()}

    @torch.no_grad()
    def whole_state(self) -> dict[str, Tensor]:
        """Whole parameters and buffers of this device's stages, by name."""
        return {n: t for module in self.modules.values() for n, t in module.state.whole().items()}

    def check_invariants(self) -> None:
        self._parcels.check_empty()
        for module in self.modules.values():
            module.check_invariants()


def _check_in_order(schedule: Schedule) -> None:
    """What goes once a step goes with the first forward, or with the last backward."""
    last: dict[tuple[int, bool], int] = {}
    for action in (action for program in schedule.programs for action in program):
        if action.kind is Kind.FORWARD or action.kind.is_backward:
            passes = action.stage, action.kind.is_backward
            before = last.get(passes, 0)
            check(before <= action.sequence, f"microbatch of {action}", f"from {before} on", action)
            last[passes] = action.sequence


def meshes_of(stages: Sequence[StageProgram], schedule: Schedule) -> list[Mesh]:
    """The mesh of every rank of the pipeline.

    Raises:
        ValueError: another number of stages than the schedule has, stages of a rank on different
            meshes, a device in two of them.
    """
    count = len(stages)
    check(schedule.num_stages == count, "stages of the schedule", count, schedule.num_stages)
    found: list[Mesh] = []
    for rank in range(schedule.num_ranks):
        meshes = [
            stage.program.mesh
            for stage, at in zip(stages, schedule.placement, strict=True)
            if at == rank
        ]
        check(all(m == meshes[0] for m in meshes), f"meshes of rank {rank}", "one", meshes)
        found.append(meshes[0])
    devices = [device for mesh in found for device in mesh.ranks]
    check(len(set(devices)) == len(devices), "devices", "each in one mesh", devices)
    return found
