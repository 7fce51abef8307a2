"""``Pins``: choices made beforehand, for the rest to be solved around."""

from collections.abc import Iterator, Mapping, Sequence

from blocks._checks import check, fail
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_graph import OpGraph, OpNode
from blocks.sharding.placement import Placement
from blocks.sharding.strategy import Strategy

Pin = Strategy | Sequence[Placement]
"""A strategy of a node; or the placements, one an axis, of a value as its maker leaves it (of what
it reads, for a node that makes nothing)."""


def find_pins(
    graph: OpGraph, pins: Mapping[str, Pin], mesh: Mesh
) -> dict[int, list[tuple[str, Pin, int]]]:
    """For the index of every pinned node: (name, what it is pinned to, which of its outputs).

    Raises:
        ValueError: a name that is neither a node nor a value; placements for another mesh.
    """
    nodes = {node.name: at for at, node in enumerate(graph.nodes)}
    values = {value.name: at for at, value in enumerate(graph.values)}
    found: dict[int, list[tuple[str, Pin, int]]] = {}
    for name, pin in pins.items():
        length = len(pin.choices) if isinstance(pin, Strategy) else len(pin)
        check(length == len(mesh.axes), f"pin of {name}", f"{len(mesh.axes)} axes", length)
        if name in nodes:
            found.setdefault(nodes[name], []).append((name, pin, 0))
        elif name in values and not isinstance(pin, Strategy):
            node = graph.maker[values[name]]
            place = graph.nodes[node].outputs.index(values[name])
            found.setdefault(node, []).append((name, pin, place))
        else:
            close = [known for known in (*nodes, *values) if name in known][:3]
            raise fail("pin", "the name of a node or a value", repr(name), _hint(close))
    return found


def pinned(
    node: OpNode, strategies: Sequence[Strategy], pins: Sequence[tuple[str, Pin, int]]
) -> tuple[Strategy, ...]:
    """Those strategies of a node that honour its pins.

    Raises:
        ValueError: none does.
    """
    kept = tuple(strategies)
    for name, pin, place in pins:
        before, kept = kept, tuple(s for s in kept if _honours(s, pin, place))
        if not kept:
            wanted = str(pin) if isinstance(pin, Strategy) else "".join(map(str, pin))
            able = sorted(set(_ways(before, pin, place)))
            raise fail(f"pin of {name} ({node.op})", f"one of {able[:12]}", wanted)
    return kept


def _of(strategy: Strategy, place: int) -> tuple[Placement, ...]:
    return strategy.outputs[place] if strategy.outputs else strategy.inputs[place]


def _honours(strategy: Strategy, pin: Pin, place: int) -> bool:
    if isinstance(pin, Strategy):
        return (strategy.inputs, strategy.outputs) == (pin.inputs, pin.outputs)
    return _of(strategy, place) == tuple(pin)


def _ways(strategies: Sequence[Strategy], pin: Pin, place: int) -> Iterator[str]:
    for strategy in strategies:
        whole = isinstance(pin, Strategy)
        yield str(strategy) if whole else "".join(map(str, _of(strategy, place)))


def _hint(close: Sequence[str]) -> str:
    return f"did you mean {' or '.join(close)}?" if close else ""
