"""``solve_stages``: the strategies of all stages, equal ones once, side by side. Needs numpy."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from blocks.pipeline.inter_op import InterOpPlan
from blocks.sharding import Cluster, Mesh, MeshCost
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.reduced import Reduced
from recipes.plan.pins import parse_pins
from recipes.plan.search.parallel_work import in_parallel
from recipes.plan.search.partition import memory_bytes
from recipes.plan.search.stage_options import Note, OptionTables
from recipes.plan.search.stage_solution import StageSolution, solve_stage


class StageTask(NamedTuple):
    """A stage to solve: its layers, on its own devices, with so many microbatches held at once."""

    reduced: Reduced
    mesh: Mesh
    in_flight: int


@dataclasses.dataclass(frozen=True, eq=False)
class StageWork:
    """What is done for every different stage, by its number in ``tasks``, which stay where they
    are: processes inherit them."""

    tasks: Sequence[StageTask]
    cluster: Cluster
    config: PlanConfig
    num_microbatches: int

    def __call__(self, number: int) -> StageSolution:
        reduced, mesh, in_flight = self.tasks[number]
        kind = self.cluster.kind_of(mesh.ranks[0]).name
        return solve_stage(
            *(reduced, MeshCost(self.cluster, mesh)),
            num_microbatches=self.num_microbatches,
            in_flight=in_flight,
            optimizer=self.config.optimizer,
            memory_bytes=memory_bytes(self.cluster, self.config)[kind],
        )


def solve_stages(
    found: InterOpPlan,
    chain: LayerChain,
    tables: OptionTables,
    cluster: Cluster,
    config: PlanConfig,
    note: Note,
    known: dict[object, StageSolution],
) -> tuple[StageSolution, ...]:
    """The strategies of every stage; those of equal ones on the devices of the first of them.

    Args:
        known: stages that were solved before; those solved now are added.

    Raises:
        ValueError: a stage that does not fit.
    """
    tasks: list[StageTask] = []
    keys: list[object] = []
    stages = []
    for stage in found.stages:
        option = tables.option(found.num_microbatches, stage.shape, stage.option)
        like = option.candidate.mesh
        kinds = tuple(chain.kind(layer) for layer in range(stage.first, stage.stop))
        reduced = Reduced.of(
            *(chain, stage.first, stage.stop),
            pins=parse_pins(config.pins),
            repeated=option.recompute,
        )
        count, ends = found.num_microbatches, reduced.origins  # what leaves equal layers may differ
        key = (kinds, stage.shape, like.sizes, stage.in_flight, option.recompute, count, ends)
        if key not in known and key not in keys:
            keys.append(key)
            mesh = Mesh(like.axes, like.sizes, stage.devices)
            tasks.append(StageTask(reduced, mesh, stage.in_flight))
        stages.append((key, reduced))
    work = StageWork(tasks, cluster, config, found.num_microbatches)
    solved = in_parallel(work, range(len(tasks)), config.workers)
    for number, (key, one) in enumerate(zip(keys, solved, strict=True), 1):
        known[key] = one
        sizes = " x ".join(map(str, one.mesh.sizes))
        note(f"strategies of a stage on {sizes} ({number} of {len(tasks)})")
    return tuple(dataclasses.replace(known[key], reduced=reduced) for key, reduced in stages)
