"""``job_of``: the job that a parallel plan describes."""

from collections.abc import Mapping

from torch import Tensor

from blocks.pipeline.schedules import SCHEDULES
from blocks.sharding import Mesh, lower
from recipes.plan.apply_plan import stages_of
from recipes.plan.execute.fx_operations import FxOperations
from recipes.plan.execute.job import PlannedJob
from recipes.plan.execute.optimizer import Optimizer
from recipes.plan.execute.routes import StageProgram
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.trace import TracedModule


def job_of(
    plan: ParallelPlan,
    traced: TracedModule,
    state: Mapping[str, Tensor],
    *,
    optimizer: Optimizer | None = None,
    seed: int = 0,
) -> PlannedJob:
    """Everything that the plan's devices do in a step.

    Devices are numbered anew, from 0, in the order of the cluster's numbers.

    Args:
        traced: with as many rows as a microbatch of the plan has.
        state: whole parameters and buffers, see ``state_of``.

    Raises:
        ValueError: a trace of another model.
    """
    devices = sorted(rank for stage in plan.stages for rank in stage.mesh.ranks)
    number = {device: at for at, device in enumerate(devices)}
    stages = []
    for applied in stages_of(plan, traced.graph):
        grid = applied.plan.mesh
        mesh = Mesh(grid.axes, grid.sizes, tuple(number[device] for device in grid.ranks))
        program = lower(applied.cut.graph, applied.strategies, mesh)
        stages.append(StageProgram(applied.cut, program))
    return PlannedJob(
        tuple(stages),
        SCHEDULES[plan.schedule](len(stages), (1,) * plan.num_microbatches),
        FxOperations(traced.ops),
        state,
        optimizer,
        seed=seed,
    )
