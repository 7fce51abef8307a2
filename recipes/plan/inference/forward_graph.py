"""``forward_graph``: the forward pass alone of a traced step. Needs no torch."""

import dataclasses
from collections.abc import Sequence

from blocks._checks import fail
from blocks.sharding import OpGraph, OpNode, TensorValue, rules


def forward_graph(graph: OpGraph) -> OpGraph:
    """What a model's scores are made of: no loss, no gradients, no update.

    Args:
        graph: of a step whose loss is the sum of the scores.

    Raises:
        ValueError: a loss that is more than a sum.
    """
    at = next(node.inputs[0] for node in graph.nodes if node.op == "loss")
    while not graph.values[at].shape:
        maker = graph.nodes[graph.maker[at]]
        if maker.role != "op" or len(maker.inputs) != 1:
            raise fail("loss", "the sum of a tensor", maker.op)
        (at,) = maker.inputs
    wanted, values = {graph.maker[at]}, {at}
    for number in range(len(graph.nodes) - 1, -1, -1):
        if number in wanted:
            values.update(graph.nodes[number].inputs)
            wanted.update(graph.maker[value] for value in graph.nodes[number].inputs)
    return _Kept(graph, sorted(wanted)).with_scores(at)


COPY = " copy"
"""Ends the name of a parameter that another part of the model reads too, such as a tied head."""


class _Kept:
    """Some nodes of a graph. Parts of a model that read one parameter get one each."""

    def __init__(self, graph: OpGraph, places: Sequence[int]) -> None:
        self.graph = graph
        self.values: list[TensorValue] = []
        self.nodes: list[OpNode] = []
        self._number: dict[int, int] = {}
        self._copies: dict[tuple[int, str], int] = {}  # by parameter and the module that reads it
        for place in places:
            node = graph.nodes[place]
            inputs = tuple(self._read(value, node.module) for value in node.inputs)
            outputs = tuple(self._made(value) for value in node.outputs)
            self.nodes.append(dataclasses.replace(node, inputs=inputs, outputs=outputs))

    def with_scores(self, value: int) -> OpGraph:
        """The graph, its only output one of its values."""
        rule = rules.output_rule(self.graph.values[value].shape)
        read = (self._number[value],)
        scores = OpNode("scores", "scores", "output", "forward", read, (), rule)
        return OpGraph(tuple(self.values), (*self.nodes, scores))

    def _made(self, value: int) -> int:
        self._number[value] = len(self.values)
        self.values.append(self.graph.values[value])
        return self._number[value]

    def _read(self, value: int, module: str) -> int:
        maker = self.graph.nodes[self.graph.maker[value]]
        if maker.role != "parameter":
            return self._number[value]
        if not any(known == value for known, _ in self._copies):
            self._copies[value, module] = self._number[value]
        elif (value, module) not in self._copies:
            tensor = self.graph.values[value]
            name = f"{tensor.name}{COPY}"
            self._copies[value, module] = len(self.values)
            self.values.append(dataclasses.replace(tensor, name=name))
            outputs = (self._copies[value, module],)
            self.nodes.append(dataclasses.replace(maker, name=name, outputs=outputs))
        return self._copies[value, module]
