"""What goes between the stages of a plan, and what that takes. Needs no torch."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from blocks.sharding import Cluster, Mesh, ShardingSpec, StageGraph
from blocks.sharding.cross_mesh import cross_mesh_s, plan_cross_mesh
from blocks.sharding.stage_graph import SEND
from recipes.plan.layers.chain import LayerChain
from recipes.plan.search.stage_solution import StageSolution
from recipes.plan.stage_plan import Boundary

MODE = "all_gather"
"""How parts that several ranks want are sent: once, and gathered there."""


class Arrival(NamedTuple):
    """A value that a stage receives.

    layer, source: of the model: that reads it, that makes it.
    node: of the layer's graph, at which it arrives.
    sender: of the source layer's graph, at which it leaves.
    once: whether it goes once a step.
    """

    layer: int
    source: int
    node: int
    sender: int
    once: bool


def arrivals(chain: LayerChain, first: int, stop: int) -> tuple[Arrival, ...]:
    """What layers ``first`` to ``stop`` receive from others; a value that several layers read
    once, for the first of them in its pass."""
    found: dict[tuple[int, int], Arrival] = {}
    layers = [*range(first, stop)]
    for layer in layers:
        cut = chain.layers[chain.sequence[layer]]
        for number, (value, _) in enumerate(cut.receives):
            source, local = chain.source_of(layer, number)
            if not first <= source < stop:
                node = cut.graph.maker[cut.local[value]]
                backward = cut.graph.nodes[node].phase == "backward"
                sender = _sender(chain.layers[chain.sequence[source]], local)
                key = (source, sender)
                if key not in found or backward:
                    found[key] = Arrival(layer, source, node, sender, value in cut.once)
    return tuple(found.values())


def _sender(cut: StageGraph, local: int) -> int:
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
            there = stages[source][3]
            sent = there.strategies[_place(there, arrival.source, arrival.sender)].inputs[0]
            wanted = solution.strategies[_place(solution, arrival.layer, arrival.node)].outputs[0]
            cut = chain.layers[chain.sequence[arrival.layer]]
            node = cut.graph.nodes[arrival.node]
            value = cut.graph.values[node.outputs[0]]
            ways = ShardingSpec(stages[source][2], sent), ShardingSpec(mesh, wanted)
            seconds = _seconds(value.shape, value.itemsize, *ways, cluster)
            ends = (node.phase, source, target, (sent, wanted))
            name = _name(chain, arrival)
            found.append(Boundary(name, *ends, value.num_bytes, seconds, arrival.once))
    return tuple(found)


def _name(chain: LayerChain, arrival: Arrival) -> str:
    """Of the node that makes what arrives."""
    graph = chain.layers[chain.sequence[arrival.source]].graph
    (value,) = graph.nodes[arrival.sender].inputs
    return chain.name(arrival.source, graph.maker[value])


def _place(solution: StageSolution, layer: int, node: int) -> int:
    """The node of a stage's graph that a node of a layer is."""
    reduced = solution.reduced
    place = next(at for at, layers in enumerate(reduced.stands_for) if layer in layers)
    return reduced.origins.index((place, node))


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
