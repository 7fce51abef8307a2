"""``repeat_forward``: layers whose forward pass is done again in the backward pass. No torch.

A graph that repeats is a graph like any other: the repeated operations are nodes of the backward
pass, so that strategies, programs, counted bytes and execution know nothing of recomputation.
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from blocks._checks import check
from blocks.sharding.op_graph import OpGraph, OpNode

AGAIN = " again"
"""What the name of a repeated node ends in."""


class Repeated(NamedTuple):
    """A graph that does some forward operations twice.

    layer_of: for every node its layer.
    """

    graph: OpGraph
    layer_of: tuple[int, ...]


def first_name(name: str) -> str:
    """The name of the node that a node repeats, or its own.

    >>> first_name("layers.0/gelu again"), first_name("layers.0/gelu")
    ('layers.0/gelu', 'layers.0/gelu')
    """
    return name.removesuffix(AGAIN)


def repeat_forward(graph: OpGraph, layer_of: Sequence[int], layers: Collection[int]) -> Repeated:
    """The graph with the forward operations of some layers done again before their backward.

    Of such a layer only what other layers read of it is kept, and what its repetition reads of
    others; the rest is made anew where the first backward operation asks for it. Operations whose
    results no backward operation needs are not repeated.

    Args:
        layer_of: for every node its layer.
        layers: those to repeat.

    Raises:
        ValueError: not one layer for every node.

    Reference:
        Chen et al., "Training deep nets with sublinear memory cost", 2016, section 3.
    """
    check(len(layer_of) == len(graph.nodes), "layer_of", len(graph.nodes), len(layer_of))
    wanted = set(layers)
    forward = [_is_forward(node) and layer_of[at] in wanted for at, node in enumerate(graph.nodes)]
    needed, first_reader = _needed(graph, layer_of, forward)
    copies: dict[int, list[int]] = {}  # where they are inserted -> nodes to repeat, in order
    for at in range(len(graph.nodes)):
        if forward[at] and any(value in needed for value in graph.nodes[at].outputs):
            copies.setdefault(first_reader[layer_of[at]], []).append(at)
    values, again = list(graph.values), {}
    for at in sorted(at for group in copies.values() for at in group):
        for value in graph.nodes[at].outputs:
            again[value] = len(values)
            made = graph.values[value]
            values.append(dataclasses.replace(made, name=made.name + AGAIN))
    nodes, layer_of_new = [], []
    for at, node in enumerate(graph.nodes):
        for before in copies.get(at, ()):
            nodes.append(_copy(graph.nodes[before], again, needed))
            layer_of_new.append(layer_of[before])
        if node.phase == "backward":
            node = _replace_inputs(node, {v: again[v] for v in node.inputs if v in needed})
        nodes.append(node)
        layer_of_new.append(layer_of[at])
    return Repeated(OpGraph(tuple(values), tuple(nodes), graph.returns), tuple(layer_of_new))


def _is_forward(node: OpNode) -> bool:
    return node.role == "op" and node.phase == "forward"


def _needed(
    graph: OpGraph, layer_of: Sequence[int], forward: Sequence[bool]
) -> tuple[set[int], dict[int, int]]:
    """Values to make again, and by layer the first backward node that reads one of its own."""
    needed: set[int] = set()
    first_reader: dict[int, int] = {}

    def own(values: Iterable[int]) -> list[int]:
        return [v for v in values if forward[graph.maker[v]] and not _kept(graph, layer_of, v)]

    for at, node in enumerate(graph.nodes):
        if node.phase == "backward":
            for value in own(node.inputs):
                needed.add(value)
                first_reader.setdefault(layer_of[graph.maker[value]], at)
    for at in reversed(range(len(graph.nodes))):
        node = graph.nodes[at]
        if forward[at] and any(value in needed for value in node.outputs):
            needed.update(own(node.inputs))
    return needed, first_reader


def _kept(graph: OpGraph, layer_of: Sequence[int], value: int) -> bool:
    """Whether another layer's forward pass reads a value: it is held for that anyway."""
    mine = layer_of[graph.maker[value]]
    return any(
        graph.nodes[reader].phase == "forward" and layer_of[reader] != mine
        for reader, _ in graph.readers[value]
    )


def _copy(node: OpNode, again: Mapping[int, int], needed: Collection[int]) -> OpNode:
    inputs = tuple(again[v] if v in needed else v for v in node.inputs)
    outputs = tuple(again[v] for v in node.outputs)
    return OpNode(
        node.name + AGAIN, node.op, "op", "backward", inputs, outputs,
        node.rule, node.module, node.block, node.source,
    )  # fmt: skip


def _replace_inputs(node: OpNode, other: Mapping[int, int]) -> OpNode:
    if not other:
        return node
    inputs = tuple(other.get(value, value) for value in node.inputs)
    return OpNode(
        node.name, node.op, node.role, node.phase, inputs, node.outputs,
        node.rule, node.module, node.block, node.source,
    )  # fmt: skip
