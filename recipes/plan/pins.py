"""Choices made beforehand, by the names plans use. Needs no torch."""

import fnmatch
from collections.abc import Mapping

from blocks._checks import check, fail
from blocks.sharding import OpGraph
from recipes.plan.layers.chain import LayerChain
from recipes.plan.stage_plan import Placements, parse_placements


def parse_pins(text: str) -> dict[str, Placements]:
    """``NAME=PLACEMENTS`` with semicolons between.

    >>> parse_pins("layers.*.up.weight=S(0)R")
    {'layers.*.up.weight': (Shard(dim=0), Replicate())}

    Raises:
        ValueError: a text that is none.
    """
    found = {}
    for part in filter(None, text.split(";")):
        name, equals, placements = part.rpartition("=")
        check(
            bool(equals and name.strip() and placements.strip()),
            *("pin", "NAME=PLACEMENTS, such as head.weight=S(0)R", repr(part)),
        )
        found[name.strip()] = parse_placements(placements.strip())
    return found


def check_pins(pins: Mapping[str, Placements], chain: LayerChain) -> None:
    """
    Raises:
        ValueError: a pin of something the model does not have.
    """
    names = {name for layer in chain.names for name in layer}
    for name in pins:
        if not any(_means(name, other) for other in names):
            near = [other for other in sorted(names) if name.split(".")[-1] in other][:4]
            hint = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"one of {', '.join(sorted(names))}"[:400]
            )
            raise fail("pin", "a name of the plan", repr(name), hint)


def pins_of(
    pins: Mapping[str, Placements],
    chain: LayerChain,
    graph: OpGraph,
    origins: tuple[tuple[int, int], ...],
    templates: tuple[int, ...],
    num_axes: int,
) -> dict[str, Placements] | None:
    """The pins of a composed graph by the names of its nodes; None where they are for meshes of
    another number of axes."""
    if any(len(placements) != num_axes for placements in pins.values()):
        return None
    found: dict[str, Placements] = {}
    for node, (place, number) in zip(graph.nodes, origins, strict=True):
        name = chain.names[templates[place]][number]
        for pinned, placements in pins.items():
            if _means(pinned, name):
                found[node.name] = placements
    return found


def _means(pinned: str, name: str) -> bool:
    """Whether a pin is about a name; its stars stand for any number, as the name's do."""
    return pinned == name or fnmatch.fnmatchcase(name, pinned.replace("[", "[[]"))
