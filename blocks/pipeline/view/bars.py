"""The bars of a panel as few SVG paths: one for every colour, however many actions there are."""

from collections.abc import Iterator

from blocks.pipeline.action import Kind
from blocks.pipeline.view.figure import Bar, Panel
from blocks.pipeline.view.layout import Layout
from blocks.pipeline.view.palette import colour, is_dark, shade_of

MAX_LABELS = 1500
LETTER = 4.9
"""Width of a letter of a label in pixels, and of its margins together."""


def bar_paths(panel: Panel, layout: Layout, number: int) -> Iterator[tuple[str, str]]:
    """Colours, and the path of all bars that have it."""
    paths: dict[tuple[Kind, int], list[str]] = {}
    height = layout.lane
    for rank, lane in enumerate(panel.lanes):
        y = layout.y(number, rank)
        for bar in lane:
            x, width = layout.x(bar.start), layout.x(bar.end - bar.start)
            key = bar.action.kind, shade_of(bar.action.sequence)
            paths.setdefault(key, []).append(f"M{x:.2f} {y}h{width:.2f}v{height}h-{width:.2f}z")
    for (kind, shade), some in paths.items():
        yield colour(kind, shade), "".join(some)


def chunk_stripes(panel: Panel, layout: Layout, number: int) -> str:
    """A stripe along the foot of every bar of a chunk after the first, higher for later ones."""
    stripes = []
    for rank, lane in enumerate(panel.lanes):
        for bar in lane:
            if bar.action.chunk:
                height = min(2 + bar.action.chunk, layout.lane // 2)
                y = layout.y(number, rank) + layout.lane - height
                x, width = layout.x(bar.start), layout.x(bar.end - bar.start)
                stripes.append(f"M{x:.2f} {y}h{width:.2f}v{height}h-{width:.2f}z")
    return "".join(stripes)


def separators_from(panel: Panel, layout: Layout) -> float:
    """How much the picture must be stretched before bars are wide enough for lines between."""
    widths = sorted(layout.x(bar.end - bar.start) for lane in panel.lanes for bar in lane)
    if not widths:
        return 1.0
    return 4.0 / max(widths[len(widths) // 2], 1e-9)


def labels(panel: Panel, layout: Layout, number: int) -> Iterator[str]:
    """``sequence,slice`` on bars that are wide enough; ``sequence`` where none is cut."""
    found = 0
    cut = any(bar.action.slice for lane in panel.lanes for bar in lane)
    for rank, lane in enumerate(panel.lanes):
        middle = layout.y(number, rank) + layout.lane / 2 + 3
        for bar in lane:
            text, width = label(bar, is_cut=cut), layout.x(bar.end - bar.start)
            if width < LETTER * (len(text) + 1) or layout.lane < 14:
                continue
            found += 1
            if found > MAX_LABELS:
                return
            dark = is_dark(bar.action.kind, shade_of(bar.action.sequence))
            fill = ' fill="#fff" style="fill:#fff"' if dark else ""
            x = layout.x((bar.start + bar.end) / 2)
            yield f'<text x="{x:.1f}" y="{middle}" text-anchor="middle"{fill}>{text}</text>'


def label(bar: Bar, *, is_cut: bool) -> str:
    """What is written on a bar."""
    sequence, piece = bar.action.sequence, bar.action.slice
    return f"{sequence},{piece}" if is_cut else str(sequence)
