"""``Reads``: who reads a value, and how often. Needs no torch."""

from collections.abc import Iterator
from typing import NamedTuple

from blocks.sharding.op_graph import OpGraph, Phase


class Reads(NamedTuple):
    """A value and its readers in one phase, who share its reshardings.

    value: index in the graph.
    maker, maker_place: node that makes it, and as which of its outputs.
    readers: (node, which of its inputs) of every reader; or, where an update's output returns to
        the parameter, the parameter and no inputs.
    phase: in which it is read.
    """

    value: int
    maker: int
    maker_place: int
    readers: tuple[tuple[int, tuple[int, ...]], ...]
    phase: Phase

    @property
    def once_a_step(self) -> bool:
        """Whether what the optimizer reads, or what it leaves for the next step."""
        return self.phase == "update"


def reads_of(graph: OpGraph) -> Iterator[Reads]:
    """All of a graph, in the order of their makers."""
    returns = dict(graph.returns)
    for at, node in enumerate(graph.nodes):
        for place, value in enumerate(node.outputs):
            by_phase: dict[Phase, dict[int, list[int]]] = {}
            for reader, where in graph.readers[value]:
                of_phase = by_phase.setdefault(graph.nodes[reader].phase, {})
                of_phase.setdefault(reader, []).append(where)
            for phase, readers in by_phase.items():
                listed = tuple((reader, tuple(where)) for reader, where in readers.items())
                yield Reads(value, at, place, listed, phase)
            if value in returns:
                yield Reads(value, at, place, ((graph.maker[returns[value]], ()),), "update")
