"""``Routes``: which values go from stage to stage, and how they lie on either side. No torch."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from blocks._checks import check
from blocks.sharding import Program, ShardingSpec, StageGraph
from blocks.sharding.cross_mesh import CrossMeshPlan, Mode, plan_cross_mesh

Way = Literal["forward", "backward"]


class StageProgram(NamedTuple):
    """A stage of a pipeline: its part of the graph, lowered on its own mesh.

    program: of ``cut.graph``; its mesh has the devices' own numbers.
    """

    cut: StageGraph
    program: Program


class Cargo(NamedTuple):
    """A value on its way from a stage to another.

    value: its index in the whole graph.
    plan: of the messages between the two meshes.
    dtype: as torch names it.
    source_name, target_name: what it is called in the two programs.
    once: whether it goes once a step: a parameter with the first microbatch, the sum of a gradient
        with the last.
    """

    value: int
    plan: CrossMeshPlan
    dtype: str
    source_name: str
    target_name: str
    once: bool


@dataclasses.dataclass(frozen=True)
class Routes:
    """All that moves between stages.

    cargo: by (way, source stage, target stage), in the order it is sent.
    num_microbatches: of a step.
    """

    cargo: Mapping[tuple[Way, int, int], tuple[Cargo, ...]]
    num_stages: int
    num_microbatches: int

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Pairs (earlier, later) of stages: neighbours, and those with something to send."""
        pairs = {(min(a, b), max(a, b)) for _, a, b in self.cargo}
        chain = {(stage, stage + 1) for stage in range(self.num_stages - 1)}
        return tuple(sorted(pairs | chain))

    @property
    def channels(self) -> list[tuple[int, int]]:
        """Pairs (from, to) of devices between which messages go."""
        plans = [cargo.plan for every in self.cargo.values() for cargo in every]
        pairs = {(one.source, one.target) for plan in plans for one in plan.transfers}
        return sorted((source, target) for source, target in pairs if source != target)

    def of(self, way: Way, source: int, target: int, microbatch: int) -> tuple[Cargo, ...]:
        """What a stage sends another with a microbatch, none where there is none."""
        only = 0 if way == "forward" else self.num_microbatches - 1
        every = self.cargo.get((way, source, target), ())
        return every if microbatch == only else tuple(one for one in every if not one.once)

    def once(self, way: Way, stage: int) -> tuple[Cargo, ...]:
        """What arrives at a stage once a step."""
        return tuple(
            cargo
            for (its, _, target), every in self.cargo.items()
            for cargo in every
            if its == way and target == stage and cargo.once
        )

    def summed(self, stage: int) -> frozenset[str]:
        """Names of the gradients that leave a stage once a step, as their sums."""
        return frozenset(
            cargo.source_name
            for (way, source, _), every in self.cargo.items()
            for cargo in every
            if way == "backward" and source == stage and cargo.once
        )


def routes(
    stages: Sequence[StageProgram], num_microbatches: int, *, mode: Mode = "send_recv"
) -> Routes:
    """What moves between the stages of a pipeline, planned value by value.

    Args:
        num_microbatches: of a step.
        mode: how ranks that want the same part of a value get it.

    Raises:
        ValueError: a stage that receives what no stage sends it.
    """
    leaving: dict[int, tuple[int, str, ShardingSpec]] = {}
    for at, stage in enumerate(stages):
        names = {stage.program.graph.nodes[node].name: name for node, name in stage.program.results}
        for value, _ in stage.cut.sends:
            whole = stage.program.graph.values[stage.cut.local[value]].name
            name = names[f"send:{whole}"]
            placements = stage.program.placements_of[name]
            leaving[value] = (at, name, ShardingSpec(stage.program.mesh, placements))
    found: dict[tuple[Way, int, int], list[Cargo]] = {}
    for at, stage in enumerate(stages):
        graph, mesh = stage.program.graph, stage.program.mesh
        for value, source in stage.cut.receives:
            check(value in leaving, f"value {value} of stage {at}", "sent by a stage", "by none")
            here, name, spec = leaving[value]
            check(here == source, f"sender of value {value}", f"stage {source}", here)
            local = stage.cut.local[value]
            node = graph.nodes[graph.maker[local]]
            tensor = graph.values[local]
            way: Way = "forward" if node.phase == "forward" else "backward"
            target = ShardingSpec(mesh, stage.program.placements(local))
            plan = plan_cross_mesh(tensor.shape, spec, target, mode=mode)
            once = value in stage.cut.once
            cargo = Cargo(value, plan, tensor.dtype, name, tensor.name, once)
            found.setdefault((way, source, at), []).append(cargo)
    ordered = {key: tuple(sorted(every, key=lambda c: c.value)) for key, every in found.items()}
    return Routes(ordered, len(stages), num_microbatches)
