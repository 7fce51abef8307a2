"""The legend: what is in it, and how it breaks into rows."""

from collections.abc import Iterator
from typing import NamedTuple

from blocks.pipeline.view.figure import Figure
from blocks.pipeline.view.palette import MEMORY, NAMES, NUM_SHADES, PATH, WAIT, colour

ROW = 18
"""Height of a row."""
_LETTER = 6.3
_SAMPLE = 28


class Entry(NamedTuple):
    """A sample as SVG with its upper left corner at 0, 0, and its name."""

    sample: str
    name: str

    @property
    def width(self) -> int:
        return (_SAMPLE + 6 if self.sample else 0) + round(_LETTER * len(self.name)) + 14


def entries(figure: Figure) -> Iterator[Entry]:
    """What the figure has need of."""
    bars = [bar for panel in figure.panels for lane in panel.lanes for bar in lane]
    kinds = {bar.action.kind for bar in bars}
    for kind in NAMES:
        if kind in kinds:
            sample = "".join(
                f'<rect x="{7 * shade}" width="7" height="11" fill="{colour(kind, shade)}"/>'
                for shade in range(NUM_SHADES)
            )
            yield Entry(sample, NAMES[kind])
    if any(waits for panel in figure.panels for waits in panel.waits):
        yield Entry(f'<rect width="28" height="11" fill="{WAIT}"/>', "waits for a tensor")
    line = f'<path d="M0 5.5h28" stroke="{PATH}" stroke-width="2"/>'
    yield Entry(line, "critical path")
    if any(bar.action.chunk for bar in bars):
        foot = f'<rect y="8" width="28" height="3" fill="{PATH}" opacity=".45"/>'
        yield Entry(f'<rect width="28" height="11" fill="{MEMORY}"/>{foot}', "later chunk")
    if len({bar.action.sequence for bar in bars}) > 1:
        yield Entry("", "shades tell sequences apart")


def rows(figure: Figure, width: int) -> list[list[Entry]]:
    """The entries, as many in a row as fit into ``width`` pixels."""
    found: list[list[Entry]] = [[]]
    room = width
    for entry in entries(figure):
        if found[-1] and entry.width > room:
            found.append([])
            room = width
        found[-1].append(entry)
        room -= entry.width
    return found


def legend(figure: Figure, x: int, y: int, width: int) -> Iterator[str]:
    """The legend with its upper left corner at a place."""
    for row, some in enumerate(rows(figure, width)):
        at = x
        for entry in some:
            place = f'transform="translate({at},{y + row * ROW})"'
            name = f'<text x="{_SAMPLE + 6 if entry.sample else 0}" y="9.5">{entry.name}</text>'
            kind = "entry" if entry.sample else "entry fact"
            yield f'<g class="{kind}" {place}>{entry.sample}{name}</g>'
            at += entry.width
