"""Names of operations and parameters that repeated layers share. Need no torch."""

import re
from collections import Counter
from collections.abc import Iterable

from blocks.sharding import OpNode

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


def name_pattern(path: str, block: int) -> str:
    """A path with ``*`` for the number of the repeated block it is in.

    >>> name_pattern("layers.3.experts.0.up", 3), name_pattern("head.0", -1)
    ('layers.*.experts.0.up', 'head.0')
    """
    return path if block < 0 else _NUMBER.sub("*", path, count=1)


def node_names(nodes: Iterable[OpNode]) -> tuple[str, ...]:
    """Names of a layer's nodes, the same in every layer of its kind.

    The module, the operation, the pass where it is not the forward, and a count where all these
    are the same.
    """
    seen: Counter[str] = Counter()
    found = []
    for node in nodes:
        if node.role in ("parameter", "accumulate", "update"):
            name = name_pattern(node.name, node.block)
        else:
            parts = [name_pattern(node.module, node.block), short_op(node.op)]
            if node.phase != "forward":
                parts.append(node.phase)
            name = " ".join(part for part in parts if part)
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return tuple(found)


def short_op(op: str) -> str:
    """
    >>> short_op("aten.gelu.default"), short_op("mm")
    ('gelu', 'mm')
    """
    return op.removeprefix("aten.").removesuffix(".default")
