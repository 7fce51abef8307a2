"""Where the stages of Alpa's published rows begin and end."""

import itertools
from collections.abc import Sequence

from benches.alpa_runs import Run
from blocks.sharding import OpGraph
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.layers_of import layers_of


def layers_for(run: Run, graph: OpGraph) -> tuple[int, ...]:
    """For every node its layer: blocks, or halves of them for fine clusters of operations.

    Where a pipeline of one-device stages has fewer stages than the model has blocks, blocks were
    wrapped for recomputation before they were clustered, so that none was cut.
    """
    finest = run.model.num_layers if run.method == "inter" else run.model.num_layers // 4
    finely = run.recompute == "layers" and len(run.meshes) > finest
    transformer = run.model.family != "wide_resnet"
    return half_layers(graph) if finely and transformer else layers_of(graph)


def stage_bounds(run: Run, chain: LayerChain) -> list[int]:
    """First layers of the stages, and the number of layers.

    Shares of blocks have the first layer (embedding, stem) in the first stage and the head in the
    last one; those of clusters of as many FLOPs each are rounded to layers.
    """
    num_layers, num_stages = chain.num_layers, len(run.meshes)
    work = [chain.layers[chain.sequence[at]].graph.flops() for at in range(num_layers)]
    if run.model.family == "wide_resnet":
        num_stages = min(num_stages, num_layers - 2)
    num_stages = min(num_stages, num_layers)
    if not run.shares:
        return even_bounds(work, num_stages)
    ends = list(itertools.accumulate(run.shares))
    if run.recompute == "blocks" or run.model.family == "wide_resnet":
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


def half_layers(graph: OpGraph) -> tuple[int, ...]:
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
