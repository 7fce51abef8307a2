"""What goes between the stages of a plan, and what that takes. Needs no torch."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from blocks.sharding import Cluster, Mesh, ShardingSpec, StageGraph
from blocks.sharding.cross_mesh import cross_mesh_s, plan_cross_mesh
from blocks.sharding.stage_graph import SEND
from recipes.plan.layers.chain import LayerChain
from recipes.plan.search.stage_solution import StageSolution
from recipes.plan.stage_plan import Boundary, Placements

MODE = "all_gather"
"""How parts that several ranks want are sent: once, and gathered there."""


class Arrival(NamedTuple):
    """A value that a stage receives.

    layer, source: of the model: that reads it, that makes it.
    node: of the layer's graph, at which it arrives.
    sender: of the source layer's graph, at which it leaves.
    """

    layer: int
    source: int
    node: int
    sender: int


def arrivals(chain: LayerChain, first: int, stop: int) -> tuple[Arrival, ...]:
    """What layers ``first`` to ``stop`` receive from others; a value that several layers read
    once, for the first of them in its pass."""
    found: dict[tuple[int, int], Arrival] = {}
    layers = [*range(first, stop)]
    for layer in layers:
        cut = chain.layers[chain.sequence[layer]]
        for number, (value, _) in enumerate(cut.receives):
            source, sender = source_of(chain, layer, number)
            if not first <= source < stop:
                node = cut.graph.maker[cut.local[value]]
                backward = cut.graph.nodes[node].phase == "backward"
                key = (source, sender)
                if key not in found or backward:
                    found[key] = Arrival(layer, source, node, sender)
    return tuple(found.values())


def source_of(chain: LayerChain, layer: int, number: int) -> tuple[int, int]:
    """The layer of the model that makes what a layer receives as its ``number``-th, and the node
    at which it leaves that layer."""
    template = chain.sequence[layer]
    value, source = chain.layers[template].receives[number]
    alike = [t for t in range(len(chain.layers)) if chain.kinds[t] == chain.kinds[template]]
    for other in sorted(alike, key=lambda t: t != template):
        there, from_layer = chain.layers[other].receives[number]
        beside = layer + from_layer - other
        inside = 0 <= beside < chain.num_layers
        if inside and chain.kind(beside) == chain.kinds[from_layer]:
            return beside, _sender(chain.layers[from_layer], there)
    return chain.sequence.index(source), _sender(chain.layers[source], value)


def _sender(cut: StageGraph, value: int) -> int:
    local = cut.local[value]
    return next(at for at, n in enumerate(cut.graph.nodes) if n.op == SEND and n.inputs == (local,))


def boundaries(
    chain: LayerChain,
    stages: Sequence[tuple[int, int, Mesh, StageSolution]],
    cluster: Cluster,
) -> tuple[Boundary, ...]:
    """Every tensor that crosses from a stage to another, in the order of the stages that read.

    Args:
        stages: first layer, stop, mesh on the stage's own devices, strategies.
    """
    found = []
    for target, (first, stop, mesh, solution) in enumerate(stages):
        for arrival in arrivals(chain, first, stop):
            source = next(at for at, s in enumerate(stages) if s[0] <= arrival.source < s[1])
            sent = _leaves(chain, stages[source][3], arrival.source, arrival.sender)
            wanted = _arrives(solution, arrival.layer, arrival.node)
            cut = chain.layers[chain.sequence[arrival.layer]]
            node = cut.graph.nodes[arrival.node]
            value = cut.graph.values[node.outputs[0]]
            ways = ShardingSpec(stages[source][2], sent), ShardingSpec(mesh, wanted)
            seconds = _seconds(value.shape, value.itemsize, *ways, cluster)
            name = value.name
            found.append(
                Boundary(name, node.phase, source, target, (sent, wanted), value.num_bytes, seconds)
            )
    return tuple(found)


def _arrives(solution: StageSolution, layer: int, node: int) -> Placements:
    """How a value lies where a stage receives it."""
    at = _place(solution, layer, node)
    assert at is not None, f"layer {layer} of {solution.reduced.stands_for} has no node {node}"
    return solution.strategies[at].outputs[0]


def _leaves(chain: LayerChain, solution: StageSolution, layer: int, node: int) -> Placements:
    """How a value lies where it leaves: as its maker left it, where layers of its own stage read it
    too and the end is not kept."""
    at = _place(solution, layer, node)
    if at is not None:
        return solution.strategies[at].inputs[0]
    graph = chain.layers[chain.sequence[layer]].graph
    value = graph.nodes[node].inputs[0]
    maker = graph.maker[value]
    at = _place(solution, layer, maker)
    assert at is not None, f"layer {layer} of {solution.reduced.stands_for} has no node {maker}"
    return solution.strategies[at].outputs[graph.nodes[maker].outputs.index(value)]


def _place(solution: StageSolution, layer: int, node: int) -> int | None:
    """The node of a stage's graph that a node of a layer is; None where it is left out."""
    reduced = solution.reduced
    place = next(at for at, layers in enumerate(reduced.stands_for) if layer in layers)
    wanted = (place, node)
    return next((at for at, origin in enumerate(reduced.origins) if origin == wanted), None)


@functools.lru_cache(maxsize=4096)
def _seconds(
    shape: tuple[int, ...],
    itemsize: int,
    source: ShardingSpec,
    target: ShardingSpec,
    cluster: Cluster,
) -> float:
    plan = plan_cross_mesh(shape, source, target, mode=MODE)
    return cross_mesh_s(plan, itemsize, cluster)
