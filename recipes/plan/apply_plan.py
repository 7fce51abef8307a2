"""``stages_of``: a plan laid over a graph of its model: a graph and strategies for every stage.

Needs no planner: no numpy, no solver, no torch.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from blocks._checks import check, fail
from blocks.sharding import (
    Mesh,
    OpGraph,
    OpNode,
    StageGraph,
    Strategy,
    cut_graph,
    repeat_forward,
    strategy_of,
)
from blocks.sharding.repeat_forward import AGAIN, first_name
from blocks.sharding.stage_graph import RECEIVE, SEND
from recipes.plan.choice_text import parse_choice
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.layers_of import layers_of
from recipes.plan.layers.node_names import name_pattern
from recipes.plan.parallel_plan import Fingerprint, ParallelPlan
from recipes.plan.stage_plan import StagePlan, placements_text

BY_HAND = "a plan is changed by `python -m recipes.plan pin`, not by hand"


class AppliedStage(NamedTuple):
    """What one stage does: its graph, and a strategy for each of its nodes."""

    plan: StagePlan
    cut: StageGraph
    strategies: tuple[Strategy, ...]


def stages_of(plan: ParallelPlan, graph: OpGraph) -> tuple[AppliedStage, ...]:
    """The stages of a plan on a graph traced with the plan's rows of a microbatch.

    Raises:
        ValueError: a graph of another model; a plan changed by hand that says two things of one.
    """
    layer_of = layers_of(graph)
    chain = LayerChain.of(graph, layer_of)
    name = f"{plan.settings.get('model')} as traced here"
    plan.model.check_same("model", Fingerprint(name, chain.digest(), chain.num_layers))
    cuts = cut_graph(graph, [plan.stage_of(layer) for layer in layer_of])
    applied = tuple(
        AppliedStage(
            stage, _again(cut, stage, layer_of), _strategies(plan, stage, cut, layer_of, chain)
        )
        for stage, cut in zip(plan.stages, cuts, strict=True)
    )
    for stage in applied:
        _check_parameters(plan, stage, layer_of)
    _check_boundaries(plan, applied)
    return applied


def _check_parameters(plan: ParallelPlan, stage: AppliedStage, layer_of: Sequence[int]) -> None:
    """A plan's table of parameters says again what the choices of their nodes do."""
    graph = stage.cut.graph
    for at, origin in enumerate(stage.cut.nodes):
        node = graph.nodes[at]
        if node.role != "update":
            continue
        placed = [
            placements_text(stage.strategies[graph.maker[value]].outputs[0])
            for value in (*node.inputs[:2], node.outputs[0])
        ]
        pattern = stage.plan.pattern_of(layer_of[origin])
        name = name_pattern(graph.values[node.inputs[0]].name, node.block)
        said = plan.patterns[pattern].parameters.get(name, tuple(placed))
        what = f"parameter {name} of pattern {pattern}"
        expected = f"{' / '.join(placed)}, as its choices have it"
        check(tuple(placed) == said, what, expected, " / ".join(said), BY_HAND)


def _check_boundaries(plan: ParallelPlan, stages: Sequence[AppliedStage]) -> None:
    """The list of what crosses between stages says again what the choices do."""
    sent: dict[int, str] = {}
    found = []
    for cut, strategies in ((stage.cut, stage.strategies) for stage in stages):
        for node, strategy in zip(cut.graph.nodes, strategies, strict=True):
            if node.op == SEND:
                sent[cut.values[node.inputs[0]]] = placements_text(strategy.inputs[0])
    for target, (_, cut, strategies) in enumerate(stages):
        for value, source in cut.receives:
            at = cut.graph.maker[cut.local[value]]
            arrives = placements_text(strategies[at].outputs[0])
            found.append((cut.graph.nodes[at].phase, source, target, sent[value], arrives))
    said = [
        (one.phase, one.source, one.target, *map(placements_text, one.placements))
        for one in plan.boundaries
    ]
    others = sorted((Counter(said) - Counter(found)).elements())
    expected = f"those that its choices have, {sorted(found)}"
    check(not others, "boundaries of the plan", expected, others, BY_HAND)


def _again(cut: StageGraph, stage: StagePlan, layer_of: Sequence[int]) -> StageGraph:
    """The graph of a stage that repeats its forward pass, layer by layer; others as they are.

    Repeated nodes and their values are none of the whole graph: -1.
    """
    if not stage.recompute:
        return cut
    layers = [
        min(max(layer_of[origin], stage.first), stage.stop - 1) if origin >= 0 else stage.first
        for origin in cut.nodes
    ]
    again = repeat_forward(cut.graph, layers, set(layers)).graph
    origin = dict(zip((node.name for node in cut.graph.nodes), cut.nodes, strict=True))
    more = len(again.values) - len(cut.values)
    return dataclasses.replace(
        cut,
        graph=again,
        nodes=tuple(origin.get(node.name, -1) for node in again.nodes),
        values=(*cut.values, *[-1] * more),
    )


def _strategy(node: OpNode, choices: tuple[int, ...], mesh: Mesh) -> Strategy:
    expected = f"one for each of the axes {', '.join(mesh.axes)}"
    check(len(choices) == len(mesh.axes), f"choice of {node.name}", expected, len(choices))
    return strategy_of(node.rule, choices)


def _strategies(
    plan: ParallelPlan,
    stage: StagePlan,
    cut: StageGraph,
    layer_of: Sequence[int],
    chain: LayerChain,
) -> tuple[Strategy, ...]:
    of_node: dict[int, str] = {}  # by node of the whole graph
    of_copy: dict[int, str] = {}  # of its repetition
    of_end: dict[tuple[str, int], str] = {}  # by op and value of the whole graph
    for layer in range(stage.first, stage.stop):
        choices = plan.patterns[stage.pattern_of(layer)].choices
        part = chain.layers[layer]
        for at, (origin, name) in enumerate(zip(part.nodes, chain.names[layer], strict=True)):
            if name not in choices:
                continue
            if origin >= 0:
                of_node.setdefault(origin, choices[name])
                of_copy.setdefault(origin, choices.get(name + AGAIN, choices[name]))
            else:
                node = part.graph.nodes[at]
                end = node.outputs[0] if node.op == RECEIVE else node.inputs[0]
                of_end.setdefault((node.op, part.values[end]), choices[name])
    origins = {node.name: at for node, at in zip(cut.graph.nodes, cut.nodes, strict=True)}
    found = []
    for node in _again(cut, stage, layer_of).graph.nodes:
        origin = origins[first_name(node.name)]
        if origin >= 0:
            text = (of_node if node.name in origins else of_copy).get(origin)
        else:
            end = node.outputs[0] if node.op == RECEIVE else node.inputs[0]
            text = of_end.get((node.op, cut.values[end]))
        if text is None:
            raise fail(f"choice of {node.name}", "one in the plan", "none", "plan again")
        choices = parse_choice(node.rule, text, f"choice of {node.name}")
        found.append(_strategy(node, choices, stage.mesh))
    return tuple(found)
