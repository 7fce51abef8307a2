"""Parallel plans without a search: strategies that follow how inputs and parameters lie."""

import random
from collections.abc import Callable, Sequence

from blocks.sharding import Mesh, OpGraph, OpNode, Replicate, Shard, Strategy, cut_graph, strategies
from blocks.sharding.stage_graph import RECEIVE
from recipes.plan.choice_text import choice_text
from recipes.plan.config import PlanConfig
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.layers_of import layers_of
from recipes.plan.parallel_plan import Fingerprint, ParallelPlan
from recipes.plan.prediction import Prediction, StagePrediction
from recipes.plan.stage_plan import Pattern, StagePlan

Wanted = Callable[[OpNode, Strategy], float]
"""How well a strategy of a node suits, before what it reads is looked at."""

UP = ("query.weight", "key.weight", "value.weight", "gate.weight", "up.weight")
DOWN = ("out.weight", "down.weight")


def data_parallel(axis: int, num_axes: int = 1) -> Wanted:
    """Rows cut along an axis of the mesh; gradients summed and the optimizer cut along it, too."""

    def wanted(node: OpNode, strategy: Strategy) -> float:
        if node.role == "input":
            return 100.0 * (node.op == "input" and strategy.outputs[0][axis] == Shard(0))
        if node.role == "parameter":
            return 100.0 * (strategy.outputs[0][axis] == Replicate())
        if node.role == "update":
            return 100.0 * (strategy.outputs[0][axis] == Shard(0))
        return 0.0

    return wanted


def tensor_parallel(axis: int) -> Wanted:
    """Matrices cut along an axis, columns first and rows then, as Megatron does."""

    def wanted(node: OpNode, strategy: Strategy) -> float:
        if node.role == "input":
            return 100.0 * (strategy.outputs[0][axis] == Replicate())
        if node.role == "parameter":
            cut = 0 if node.name.endswith(UP) else 1 if node.name.endswith(DOWN) else None
            lies = Replicate() if cut is None else Shard(cut)
            return 100.0 * (strategy.outputs[0][axis] == lies)
        return 0.0

    return wanted


def both(*wanted: Wanted) -> Wanted:
    """Each along its own axis."""
    return lambda node, strategy: sum(one(node, strategy) for one in wanted)


def anything(seed: int) -> Wanted:
    """Whatever comes."""
    draw = random.Random(seed)
    return lambda node, strategy: 3 * draw.random()


def followed(graph: OpGraph, mesh: Mesh, wanted: Wanted) -> list[Strategy]:
    """For every node the strategy that suits best and moves least of what it reads; of those one
    that cuts something."""
    chosen: list[Strategy] = []
    lies: dict[int, tuple] = {}
    for node in graph.nodes:

        def worth(strategy: Strategy, node: OpNode = node) -> tuple[float, int]:
            kept = sum(
                lies[v][axis] == p[axis]
                for v, p in zip(node.inputs, strategy.inputs, strict=True)
                for axis in range(len(mesh.axes))
            )
            cut = sum(choice >= 0 for choice in strategy.choices)
            return wanted(node, strategy) + kept, cut

        chosen.append(max(strategies(node.rule, mesh), key=worth))
        lies.update(zip(node.outputs, chosen[-1].outputs, strict=True))
    return chosen


def made_plan(
    graph: OpGraph, meshes: Sequence[Mesh], wanted: Wanted, asked: PlanConfig
) -> ParallelPlan:
    """A plan of as many stages as there are meshes.

    Args:
        graph: of a microbatch's rows.
        asked: how many rows a step has, and the like.
    """
    layer_of = layers_of(graph)
    chain = LayerChain.of(graph, layer_of)
    count = len(meshes)
    bounds = [chain.num_layers * at // count for at in range(count + 1)]
    stage_of = [sum(layer >= bound for bound in bounds[1:-1]) for layer in layer_of]
    patterns: dict[str, Pattern] = {}
    stages = []
    for at, cut in enumerate(cut_graph(graph, stage_of)):
        chosen = followed(cut.graph, meshes[at], wanted)
        of_node, of_end = {}, {}
        for node, origin, strategy in zip(cut.graph.nodes, cut.nodes, chosen, strict=True):
            text = choice_text(node.rule, strategy.choices)
            if origin >= 0:
                of_node[origin] = text
            else:
                end = node.outputs[0] if node.op == RECEIVE else node.inputs[0]
                of_end[node.op, cut.values[end]] = text
        runs = []
        for layer in range(bounds[at], bounds[at + 1]):
            part, names = chain.layers[layer], chain.names[layer]
            choices = {}
            for node, origin, name in zip(part.graph.nodes, part.nodes, names, strict=True):
                if origin < 0:
                    end = node.outputs[0] if node.op == RECEIVE else node.inputs[0]
                    text = of_end.get((node.op, part.values[end]))
                else:
                    text = of_node.get(origin)
                if text is not None:
                    choices[name] = text
            patterns[f"layer {layer}"] = Pattern(choices, {})
            runs.append((layer, layer + 1, f"layer {layer}"))
        nothing = StagePrediction(0.0, 0.0, 0.0, 0.0, {}, 0.0, 0.0, 0.0, 0.0, 1, 0.0)
        stages.append(
            StagePlan(bounds[at], bounds[at + 1], meshes[at], False, tuple(runs), nothing)
        )
    num_devices = sum(mesh.num_ranks for mesh in meshes)
    return ParallelPlan(
        Fingerprint("made", chain.digest(), chain.num_layers),
        Fingerprint("none", "none", num_devices),
        asked.to_json(),
        "one_f_one_b",
        asked.num_microbatches or 1,
        patterns,
        tuple(stages),
        (),
        Prediction(0.0, 0.0, 0.0, "none"),
    )
