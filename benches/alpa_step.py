"""``step_of``: what a published row of Alpa's comes to under the cost model."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from benches.alpa_bounds import layers_for, stage_bounds
from benches.alpa_choices import allowed_of
from benches.alpa_convolutions import convolution_flops
from benches.alpa_paper import COUNTED, iteration_flops
from benches.alpa_runs import Run
from blocks.pipeline import Action, simulate
from blocks.pipeline.action import Kind
from blocks.pipeline.schedules import SCHEDULES
from blocks.sharding import Cluster, Mesh, MeshCost, OpGraph, bundled_cluster
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.compiled import compiled
from recipes.plan.layers.reduced import Reduced
from recipes.plan.search.boundaries import boundaries
from recipes.plan.search.stage_solution import StageSolution, solve_stage
from recipes.plan.search.step_time import step_time
from recipes.plan.stage_plan import Boundary, StagePlan

OPTIMIZERS = {"gpt": "adamw", "moe": "sgd", "wide_resnet": "momentum"}
"""MoE was trained with Adafactor, whose state is next to nothing beside the float32 copy."""


@dataclasses.dataclass(frozen=True)
class Replayed:
    """A row: TFLOP/s per GPU as published (in ``run``) and as predicted.

    predicted: None for out of memory.
    step_s: predicted seconds of a step.
    num_microbatches: of the best prediction.
    peak_bytes: of the device that holds most.
    bubble: share of the devices' time that they wait in.
    """

    run: Run
    predicted: float | None
    step_s: float = 0.0
    num_microbatches: int = 0
    peak_bytes: float = 0.0
    bubble: float = 0.0

    @property
    def same_verdict(self) -> bool:
        """Whether both say that it fits, or both that it does not."""
        return (self.run.published is None) == (self.predicted is None)


def step_of(
    run: Run,
    count: int,
    graph: OpGraph,
    kernels: Callable[[OpGraph], OpGraph] = compiled,
    as_run: bool = True,
) -> Replayed | None:
    """The row with so many microbatches; None where it does not fit.

    Args:
        kernels: says of a stage's graph what is in memory.
        as_run: as Alpa ran it, rather than as plans found here run. Its solver is given no budget
            of memory unless asked to: what is fastest fits or does not. A worker takes its
            instructions one by one: it starts to receive when what it ran is over, and runs again
            when all is there; sends go on beside that, on streams of their own.
    """
    cluster = cluster_of(run)
    memory_bytes = cluster.kinds[0].memory_bytes
    chain = LayerChain.of(graph, layers_for(run, graph))
    bounds = stage_bounds(run, chain)
    stages: list[StagePlan] = []
    ends: list[tuple[int, int, Mesh, StageSolution]] = []
    known: dict[object, StageSolution] = {}
    device = 0
    for at, (first, stop) in enumerate(itertools.pairwise(bounds)):
        mesh = _mesh(run.meshes[at], device)
        device += mesh.num_ranks
        in_flight = min(count, len(bounds) - 1 - at)
        layers = tuple(chain.kind(n) for n in range(first, stop))
        pinned = bool(run.forced) and run.forced[at]
        key = (layers, mesh.sizes, mesh.axes, in_flight, pinned, _speeds(cluster, mesh))
        reduced = Reduced.of(chain, first, stop)
        if run.recompute:
            reduced = reduced.repeating(_repeated(run, chain))
        reduced = dataclasses.replace(reduced, graph=kernels(reduced.graph))
        if key not in known:
            try:
                known[key] = solve_stage(
                    *(reduced, MeshCost(cluster, mesh)),
                    num_microbatches=count,
                    in_flight=in_flight,
                    optimizer=OPTIMIZERS[run.model.family],
                    memory_bytes=math.inf if as_run else memory_bytes,
                    allowed=allowed_of(run, at, reduced.graph, mesh),
                )
            except ValueError as error:
                if "memory" not in str(error):
                    raise
                return None
            if known[key].predicted.peak_bytes > memory_bytes:
                return None
        solution = dataclasses.replace(known[key], reduced=reduced)
        pattern = ((first, stop, "layers"),)
        repeats = bool(run.recompute)
        stages.append(StagePlan(first, stop, mesh, repeats, pattern, known[key].predicted))
        ends.append((first, stop, mesh, solution))
    crossing = boundaries(chain, ends, cluster)
    timed = in_turn if as_run else step_time
    step_s, bubble = timed(stages, crossing, "one_f_one_b", count)
    rate = flops_of(run) / step_s / run.model.num_gpus / 1e12
    peak = max(stage.predicted.peak_bytes for stage in stages)
    return Replayed(run, rate, step_s, count, peak, bubble)


def _repeated(run: Run, chain: LayerChain) -> range:
    """Layers whose forward pass is done again: all, or all but the head."""
    return range(chain.num_layers - (run.recompute == "blocks"))


def in_turn(
    stages: Sequence[StagePlan],
    crossing: Sequence[Boundary],
    schedule: str,
    num_microbatches: int,
) -> tuple[float, float]:
    """``step_time`` where receiving takes a stage's own time."""
    own = {(s, phase): 0.0 for s in range(len(stages)) for phase in ("forward", "backward")}
    for boundary in crossing:
        own[boundary.target, boundary.phase] += boundary.seconds

    def duration(action: Action) -> float:
        predicted = stages[action.stage].predicted
        if action.kind is Kind.FORWARD:
            return predicted.forward_s + own[action.stage, "forward"]
        return predicted.backward_s + own[action.stage, "backward"]

    program = SCHEDULES[schedule](len(stages), (1,) * num_microbatches)
    timeline = simulate(program, duration)
    last = [max((span.end for span in spans), default=0.0) for spans in timeline.spans]
    pairs = zip(last, stages, strict=True)
    step_s = float(max(end + stage.predicted.update_s for end, stage in pairs))
    busy = sum(
        stage.mesh.num_ranks
        * (num_microbatches * (at.forward_s + at.backward_s) + at.update_s)
        for stage in stages
        for at in (stage.predicted,)
    )  # fmt: skip
    devices = sum(stage.mesh.num_ranks for stage in stages)
    return step_s, max(0.0, 1 - busy / (devices * step_s))


def cluster_of(run: Run) -> Cluster:
    """As many nodes as the row's GPUs need."""
    nodes, gpus = run.model.nodes
    cluster = bundled_cluster("p3.16xlarge", num_nodes=nodes, num_devices=gpus)
    if run.memory_bytes is None:
        return cluster
    kinds = (dataclasses.replace(kind, memory_bytes=run.memory_bytes) for kind in cluster.kinds)
    return dataclasses.replace(cluster, kinds=tuple(kinds))


def flops_of(run: Run) -> float:
    """What the published rate of a row is of, for a step."""
    if run.model.family == "wide_resnet":
        return convolution_flops(run.model, bool(run.recompute)) * run.rows
    counted = COUNTED.get(run.model.name) if run.model.family == "moe" else None
    return iteration_flops(run.model) if counted is None else counted * 1e12


def _speeds(cluster: Cluster, mesh: Mesh) -> tuple[float, ...]:
    """Of the slowest link along every axis: meshes alike in it are solved once."""
    return tuple(
        min(cluster.link_of(group).bytes_per_s for group in mesh.groups(axis))
        for axis in mesh.axes
    )  # fmt: skip


def _mesh(sizes: tuple[int, int], first: int) -> Mesh:
    """The devices of a stage as a grid; an axis of one rank is left out."""
    ranks = tuple(range(first, first + math.prod(sizes)))
    pairs = [(name, n) for name, n in zip(("data", "tensor"), sizes, strict=True) if n > 1]
    pairs = pairs or [("data", 1)]
    return Mesh(tuple(name for name, _ in pairs), tuple(n for _, n in pairs), ranks)
