"""``stages_of``: a plan laid over a graph of its model: a graph and strategies for every stage.

Needs no planner: no numpy, no solver, no torch.
"""

from typing import NamedTuple

from blocks._checks import fail
from blocks.sharding import OpGraph, StageGraph, Strategy, cut_graph, strategy_of
from blocks.sharding.stage_graph import RECEIVE
from recipes.plan.chain import LayerChain
from recipes.plan.choice_text import parse_choice
from recipes.plan.layers import layers_of
from recipes.plan.parallel_plan import Fingerprint, ParallelPlan
from recipes.plan.stage_plan import StagePlan


class AppliedStage(NamedTuple):
    """What one stage does: its graph, and a strategy for each of its nodes."""

    plan: StagePlan
    cut: StageGraph
    strategies: tuple[Strategy, ...]


def stages_of(plan: ParallelPlan, graph: OpGraph) -> tuple[AppliedStage, ...]:
    """The stages of a plan on a graph traced with the plan's rows of a microbatch.

    Raises:
        ValueError: a graph of another model.
    """
    layer_of = layers_of(graph)
    chain = LayerChain.of(graph, layer_of)
    plan.model.check_same("model", Fingerprint(plan.model.name, chain.digest(), chain.num_layers))
    cuts = cut_graph(graph, [plan.stage_of(layer) for layer in layer_of])
    return tuple(
        AppliedStage(stage, cut, _strategies(plan, stage, cut, chain))
        for stage, cut in zip(plan.stages, cuts, strict=True)
    )


def _strategies(
    plan: ParallelPlan, stage: StagePlan, cut: StageGraph, chain: LayerChain
) -> tuple[Strategy, ...]:
    of_node: dict[int, str] = {}  # by node of the whole graph
    of_end: dict[tuple[str, int], str] = {}  # by op and value of the whole graph
    for layer in range(stage.first, stage.stop):
        choices = plan.patterns[stage.pattern_of(layer)].choices
        part = chain.layers[layer]
        for at, (origin, name) in enumerate(zip(part.nodes, chain.names[layer], strict=True)):
            if name not in choices:
                continue
            if origin >= 0:
                of_node.setdefault(origin, choices[name])
            else:
                node = part.graph.nodes[at]
                end = node.outputs[0] if node.op == RECEIVE else node.inputs[0]
                of_end.setdefault((node.op, part.values[end]), choices[name])
    found = []
    for node, origin in zip(cut.graph.nodes, cut.nodes, strict=True):
        if origin >= 0:
            text = of_node.get(origin)
        else:
            end = node.outputs[0] if node.op == RECEIVE else node.inputs[0]
            text = of_end.get((node.op, cut.values[end]))
        if text is None:
            raise fail(f"choice of {node.name}", "one in the plan", "none", "plan again")
        found.append(strategy_of(node.rule, parse_choice(node.rule, text)))
    return tuple(found)
