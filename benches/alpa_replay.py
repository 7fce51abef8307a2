"""Replay Alpa's published experiments: predicted beside published TFLOP/s, row by row.

python -m benches.alpa_replay --family gpt --gpus 1 2 4 8   # some rows
python -m benches.alpa_replay                               # all of them, minutes

Every row is predicted as it was run (``alpa_runs``): its stages, meshes, microbatches and
recomputation are given, the strategies inside of a stage are searched for, and where several
numbers of microbatches were tried the best counts. Nothing is fitted to the rows: the share of the
peak that a device reaches comes from two rows of one device (GPT and Wide-ResNet of the ablation),
which are not ranked. As in the artifact, the FLOPs of a row are those of the published formulas for
transformers and those that are executed for convolutional networks.
"""

import argparse
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Sequence

from benches.alpa_models import graphs_of, sequences_a_row
from benches.alpa_paper import Family, iteration_flops
from benches.alpa_runs import Run, one_node_runs, runs
from benches.plan_ranking import spearman
from blocks.sharding import (
    Cluster,
    Mesh,
    MeshCost,
    OpGraph,
    OpNode,
    Strategy,
    bundled_cluster,
    strategies,
)
from recipes.plan.boundaries import boundaries
from recipes.plan.candidates import Reduced
from recipes.plan.chain import LayerChain
from recipes.plan.compiled import compiled
from recipes.plan.layers import layers_of
from recipes.plan.stage_plan import StagePlan
from recipes.plan.stage_solution import StageSolution, solve_stage
from recipes.plan.step_time import step_time

OPTIMIZERS = {"gpt": "adamw", "moe": "sgd", "wide_resnet": "momentum"}
"""MoE was trained with Adafactor, whose state is next to nothing beside the float32 copy."""

Graphs = Callable[[int], OpGraph]


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


def replay(run: Run, graphs: Graphs) -> Replayed:
    """What a row comes to under the cost model."""
    rows = run.rows // sequences_a_row(run.model)
    counts = [count for count in run.counts if rows % count == 0]
    steps = [step_of(run, count, graphs(rows // count)) for count in counts]
    return max((step for step in steps if step), key=_rate, default=Replayed(run, None))


def _rate(row: Replayed) -> float:
    return row.predicted or 0.0


def step_of(
    run: Run, count: int, graph: OpGraph, kernels: Callable[[OpGraph], OpGraph] = compiled
) -> Replayed | None:
    """The row with so many microbatches; None where it does not fit.

    Args:
        kernels: says of a stage's graph what is in memory.
    """
    cluster = cluster_of(run)
    finely = len(run.meshes) > 1 and all(mesh == (1, 1) for mesh in run.meshes)
    layers = _halves(graph) if finely and run.model.family != "wide_resnet" else layers_of(graph)
    chain = LayerChain.of(graph, layers)
    bounds = stage_bounds(run, chain)
    stages: list[StagePlan] = []
    ends: list[tuple[int, int, Mesh, StageSolution]] = []
    known: dict[object, StageSolution] = {}
    device = 0
    for at, (first, stop) in enumerate(itertools.pairwise(bounds)):
        mesh = _mesh(run.meshes[at], device)
        device += mesh.num_ranks
        in_flight = min(count, len(bounds) - 1 - at)
        key = (tuple(chain.kind(n) for n in range(first, stop)), mesh.sizes, mesh.axes, in_flight)
        reduced = Reduced.of(chain, first, stop, repeated=run.recompute)
        reduced = dataclasses.replace(reduced, graph=kernels(reduced.graph))
        if key not in known:
            try:
                known[key] = solve_stage(
                    *(reduced, MeshCost(cluster, mesh)),
                    num_microbatches=count,
                    in_flight=in_flight,
                    optimizer=OPTIMIZERS[run.model.family],
                    memory_bytes=cluster.kinds[0].memory_bytes,
                    allowed=_allowed(run, reduced.graph, mesh),
                )
            except ValueError as error:
                if "memory" not in str(error):
                    raise
                return None
        solution = dataclasses.replace(known[key], reduced=reduced)
        pattern = ((first, stop, "layers"),)
        stages.append(StagePlan(first, stop, mesh, run.recompute, pattern, known[key].predicted))
        ends.append((first, stop, mesh, solution))
    crossing = boundaries(chain, ends, cluster)
    step_s, bubble = step_time(stages, crossing, "one_f_one_b", count)
    rate = flops_of(run, graph, count) / step_s / run.model.num_gpus / 1e12
    peak = max(stage.predicted.peak_bytes for stage in stages)
    return Replayed(run, rate, step_s, count, peak, bubble)


def cluster_of(run: Run) -> Cluster:
    """As many nodes as the row's GPUs need."""
    nodes, gpus = run.model.nodes
    return bundled_cluster("p3.16xlarge", num_nodes=nodes, num_devices=gpus)


def flops_of(run: Run, graph: OpGraph, count: int) -> float:
    """What the published rate of a row is of, for a step."""
    if run.model.family == "wide_resnet":
        return graph.flops() * count * (4 / 3 if run.recompute else 1)
    return iteration_flops(run.model)


def stage_bounds(run: Run, chain: LayerChain) -> list[int]:
    """First layers of the stages, and the number of layers.

    Shares of a Wide-ResNet count blocks, with the stem in the first and the head in the last one;
    others count clusters of as many FLOPs each.
    """
    num_layers, num_stages = chain.num_layers, len(run.meshes)
    work = [chain.layers[chain.sequence[at]].graph.flops() for at in range(num_layers)]
    if num_stages > num_layers - (2 if run.model.family == "wide_resnet" else 0):
        num_stages = num_layers - (2 if run.model.family == "wide_resnet" else 0)
    if not run.shares:
        return even_bounds(work, num_stages)
    ends = list(itertools.accumulate(run.shares))
    if run.model.family == "wide_resnet":
        return [0, *(1 + end for end in ends[:-1]), num_layers]
    done = [0, *itertools.accumulate(work)]
    nearest = [
        min(
            range(num_layers + 1), key=lambda at, end=end: abs(done[at] / done[-1] - end / ends[-1])
        )
        for end in ends[:-1]
    ]
    return [0, *nearest, num_layers]


def even_bounds(work: Sequence[float], num_stages: int) -> list[int]:
    """Bounds of consecutive runs whose largest sum is least, of those with the least squares."""
    done = [0, *itertools.accumulate(work)]
    count = len(work)
    best: list[dict[int, tuple[float, float, int]]] = [{0: (0.0, 0.0, 0)}]
    for stage in range(1, num_stages + 1):
        row: dict[int, tuple[float, float, int]] = {}
        for stop in range(stage, count - (num_stages - stage) + 1):
            row[stop] = min(
                (max(most, done[stop] - done[at]), total + (done[stop] - done[at]) ** 2, at)
                for at, (most, total, _) in best[-1].items()
                if at < stop
            )
        best.append(row)
    bounds = [count]
    for stage in range(num_stages, 0, -1):
        bounds.append(best[stage][bounds[-1]][2])
    return bounds[::-1]


def _halves(graph: OpGraph) -> tuple[int, ...]:
    """Layers of half a block: attention, and what follows it; Alpa cuts between operations."""
    whole = layers_of(graph)
    last: dict[int, int] = {}
    forward, number, before = [0] * len(graph.nodes), -1, None
    for at, node in enumerate(graph.nodes):
        if node.role != "op" or node.phase != "forward":
            continue
        second = any(part in node.module for part in ("norm2", "feed_forward"))
        second = second or last.get(whole[at], 0) == 1
        last[whole[at]] = int(second)
        if (whole[at], second) != before and (before is None or (whole[at], second) > before):
            number, before = number + 1, (whole[at], second)
        forward[at] = number
    return layers_of(graph, forward)


def _mesh(sizes: tuple[int, int], first: int) -> Mesh:
    """The devices of a stage as a grid; an axis of one rank is left out."""
    ranks = tuple(range(first, first + math.prod(sizes)))
    pairs = [(name, n) for name, n in zip(("data", "tensor"), sizes, strict=True) if n > 1]
    pairs = pairs or [("data", 1)]
    return Mesh(tuple(name for name, _ in pairs), tuple(n for _, n in pairs), ranks)


def _allowed(run: Run, graph: OpGraph, mesh: Mesh) -> Callable[[OpNode, Strategy], bool]:
    """What Alpa looked at: no tensor is cut along both axes by one of its dims; the batch along the
    first axis only where it was forced to; what a restriction leaves to parameters."""
    batch = {id(node): factor for node, factor in batch_factors(graph).items()}
    divisible = {
        id(node)
        for node in graph.nodes
        if node.role == "parameter" and len(strategies(node.rule, mesh)) > 1
    }

    def allowed(node: OpNode, strategy: Strategy) -> bool:
        choices = strategy.choices
        cuts = [choice for choice in choices if choice >= 0]
        if len(set(cuts)) < len(cuts):
            return False
        if node.role == "parameter" and run.restriction:
            cut = run.restriction == "zero3" and id(node) in divisible
            return bool(cuts) == cut
        if node.role == "update" and run.restriction == "data":
            return not cuts
        if node.role != "op":
            return True
        factor = batch.get(id(node))
        for axis, choice in zip(mesh.axes, choices, strict=True):
            if mesh.size(axis) == 1:
                continue
            forced = run.restriction or (run.forced and axis == "data")
            if factor is None:
                if run.restriction and choice >= 0:
                    return False
            elif (forced and choice != factor) or (not forced and run.forced and choice == factor):
                return False
        return True

    return allowed


def batch_factors(graph: OpGraph) -> dict[OpNode, int]:
    """For every operation that has one the factor that is the batch."""
    carried: dict[int, int] = {}
    found: dict[OpNode, int] = {}
    for node in graph.nodes:
        if node.role == "input" and node.outputs and node.op != "buffer":
            if graph.values[node.outputs[0]].shape:
                carried[node.outputs[0]] = 0
            continue
        if node.role != "op":
            continue
        for value, dims in zip(node.inputs, node.rule.inputs, strict=True):
            at = carried.get(value)
            factor = None if at is None else dims[at]
            if factor is not None and node.rule.factors[factor].kind != "whole":
                found[node] = factor
                for output, made in zip(node.outputs, node.rule.outputs, strict=True):
                    if factor in made:
                        carried[output] = made.index(factor)
                break
    return found


def correlation(rows: Sequence[Replayed]) -> float:
    """Rank correlation of the rows that fit, by both accounts."""
    pairs = [
        (row.predicted, row.run.published)
        for row in rows
        if row.predicted is not None and row.run.published is not None
    ]
    predicted, published = zip(*pairs, strict=True)
    return spearman(predicted, published)


def ranked_runs(family: Family) -> tuple[Run, ...]:
    """All rows of a family but those of one device that the device's rate is taken from."""
    fitted = one_node_runs(family)[:1] if family != "moe" else ()
    return tuple(run for run in (*runs(family), *one_node_runs(family)) if run not in fitted)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benches.alpa_replay", description=__doc__)
    families: tuple[Family, ...] = ("gpt", "moe", "wide_resnet")
    parser.add_argument("--family", nargs="+", choices=families, default=families)
    parser.add_argument("--gpus", nargs="+", type=int, default=(1, 2, 4, 8, 16, 32, 64))
    options = parser.parse_args(argv)
    for family in options.family:
        rows = []
        chosen = [run for run in ranked_runs(family) if run.model.num_gpus in options.gpus]
        for model, of_model in itertools.groupby(chosen, lambda run: run.model):
            graphs = graphs_of(model)
            for run in of_model:
                begin = time.process_time()
                rows.append(replay(run, graphs))
                print(_line(rows[-1], time.process_time() - begin), flush=True)
        if len(rows) > 2:
            verdicts = sum(row.same_verdict for row in rows)
            found = f"Spearman {correlation(rows):.3f}; fits or not: {verdicts} of {len(rows)}"
            print(f"{family}: {found}")
    return 0


def _line(row: Replayed, seconds: float) -> str:
    run = row.run
    published, predicted = (
        "out of memory" if x is None else f"{x:.2f}" for x in (run.published, row.predicted)
    )
    stages = len(run.meshes)
    meshes = ", ".join("x".join(map(str, sizes)) for sizes, _ in itertools.groupby(run.meshes))
    return (
        f"{run.model.family} {run.model.name} on {run.model.num_gpus} GPUs, {run.method} "
        f"({stages} on {meshes}, {row.num_microbatches} microbatches): published {published}, "
        f"predicted {predicted} TFLOP/s per GPU, {row.peak_bytes / 1e9:.1f} GB, waiting "
        f"{row.bubble:.0%} [{seconds:.0f} s]"
    )


if __name__ == "__main__":
    sys.exit(main())
