"""``to_svg``: a figure as one SVG, for a README or inside a page."""

from collections.abc import Iterable, Iterator
from html import escape

from blocks.pipeline.view.bars import bar_paths, chunk_stripes, labels, separators_from
from blocks.pipeline.view.figure import Figure, Panel
from blocks.pipeline.view.layout import LEFT, Layout, layout_of
from blocks.pipeline.view.legend import legend
from blocks.pipeline.view.memory import Curve, Memory
from blocks.pipeline.view.palette import (
    GRID,
    IDLE,
    INK,
    MEMORY,
    MUTED,
    PATH,
    WAIT,
)
from blocks.pipeline.view.scale import bytes_text, ticks, unit_of

FONT = "Inter, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"

STYLE = f"""
text {{ font: 11px {FONT}; fill: {INK}; }}
.title {{ font-size: 19px; font-weight: 600; }}
.fact, .fact text, .axis text, .end {{ fill: {MUTED}; }}
.head {{ font-size: 12.5px; font-weight: 600; }}
.end, .name {{ font-variant-numeric: tabular-nums; }}
.labels text {{ font-size: 9.5px; pointer-events: none; }}
.path {{ fill: none; stroke-linejoin: round; vector-effect: non-scaling-stroke; }}
.bars path.cut {{ stroke: #fff; stroke-width: .8px; vector-effect: non-scaling-stroke; }}
.line {{ vector-effect: non-scaling-stroke; }}
"""


def to_svg(figure: Figure, *, width: int = 1100) -> str:
    """The whole figure with title, facts and legend, readable without anything beside it.

    Args:
        width: in pixels; the height follows from the number of ranks.
    """
    layout = layout_of(figure, width, has_title=True)
    facts = ", ".join(f"{name} {fact}" for name, fact in figure.facts)
    room = int((width - 32) / 5.6)
    facts = facts if len(facts) <= room else facts[: room - 1] + "…"
    head = [
        f'<rect width="{width}" height="{layout.height}" fill="#fff"/>',
        f'<text class="title" x="16" y="30">{escape(figure.title)}</text>',
        f'<text class="fact" x="16" y="50">{escape(facts)}</text>',
    ]
    return drawing(figure, layout, head)


def drawing(
    figure: Figure, layout: Layout, head: Iterable[str] = (), foot: Iterable[str] = ()
) -> str:
    """The SVG element of a figure in its places, between what comes before and after it."""
    size = f'width="{layout.width}" height="{layout.height}"'
    box = f'viewBox="0 0 {layout.width} {layout.height}"'
    clip = (
        f'<clipPath id="plot"><rect x="{LEFT}" width="{layout.plot}" '
        f'height="{layout.height}"/></clipPath>'
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {box} role="img">',
        f"<style>{STYLE}</style><defs>{clip}</defs>",
        *head,
        *legend(figure, LEFT, layout.legend, layout.width - LEFT),
        *_axis(figure, layout),
    ]
    for number, panel in enumerate(figure.panels):
        more = f'data-content="{number}"'
        parts += panel_parts(panel, layout, number, more, row=figure.row)
    for number, memory in enumerate(figure.memory):
        parts += _memory(memory, layout, number, figure.row)
    return "\n".join((*parts, *foot, "</svg>"))


def _axis(figure: Figure, layout: Layout) -> Iterator[str]:
    size, name = unit_of(layout.span, figure.unit)
    top, bottom = layout.tops[0], layout.axis
    yield '<g class="axis">'
    for at in ticks(layout.span / size, 10):
        x = LEFT + layout.x(at * size)
        yield f'<path d="M{x:.1f} {top}V{bottom}" stroke="{GRID}"/>'
        text = f"{at:g} {name}".strip()
        yield f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{text}</text>'
    yield "</g>"


def panel_parts(
    panel: Panel, layout: Layout, number: int, more: str = "", *, row: str = "rank"
) -> Iterator[str]:
    """The lanes of one panel, called ``row``; ``more`` attributes for its group."""
    top = layout.tops[number]
    end = LEFT + layout.plot
    yield f'<g class="panel" data-panel="{number}" {more}>'
    yield f'<text class="head" x="{LEFT}" y="{top - 9}">{escape(panel.title)}</text>'
    note = escape(panel.note)
    yield f'<text class="fact note" x="{end}" y="{top - 9}" text-anchor="end">{note}</text>'
    size = f'width="{layout.plot}" height="{layout.lane}"'
    for rank, busy in enumerate(panel.busy):
        y = layout.y(number, rank)
        yield f'<rect x="{LEFT}" y="{y}" {size} fill="{IDLE}"/>'
        yield _row(layout, f"{row} {rank}", y + layout.lane / 2 + 4, f"{busy:.1%} busy")
    yield f'<g clip-path="url(#plot)"><g class="time" transform="translate({LEFT},0)">'
    waits = "".join(
        f"M{layout.x(start):.2f} {layout.y(number, rank)}h{layout.x(stop - start):.2f}"
        f"v{layout.lane}h-{layout.x(stop - start):.2f}z"
        for rank, some in enumerate(panel.waits)
        for start, stop in some
    )
    if waits:
        yield f'<path d="{waits}" fill="{WAIT}"/>'
    cut = ' class="cut"' if separators_from(panel, layout) <= 1 else ""
    yield '<g class="bars">'
    for fill, path in bar_paths(panel, layout, number):
        yield f'<path{cut} d="{path}" fill="{fill}"/>'
    yield "</g>"
    stripes = chunk_stripes(panel, layout, number)
    if stripes:
        yield f'<path d="{stripes}" fill="{PATH}" opacity=".4"/>'
    yield from _critical_path(panel, layout, number)
    yield "</g>"
    yield f'<g class="labels" transform="translate({LEFT},0)">'
    yield from labels(panel, layout, number)
    yield "</g></g></g>"


def _row(layout: Layout, name: str, y: float, text: str) -> str:
    """The name before a lane and what is said after it."""
    name = f'<text class="name" x="{LEFT - 10}" y="{y}" text-anchor="end">{escape(name)}</text>'
    return f'{name}<text class="end" x="{LEFT + layout.plot + 8}" y="{y}">{text}</text>'


def _critical_path(panel: Panel, layout: Layout, number: int) -> Iterator[str]:
    above = 5 if layout.lane >= 22 else 2  # below the labels
    points = [
        f"{layout.x(time):.2f} {layout.y(number, stop.rank) + layout.lane - above}"
        for stop in panel.path
        for time in (stop.start, stop.end)
    ]
    if points:
        line = "M" + "L".join(points)
        thin = len(points) > 400
        halo = f'stroke="#fff" stroke-width="{2.4 if thin else 3.6}" opacity=".75"'
        yield f'<path class="path" d="{line}" {halo}/>'
        yield f'<path class="path" d="{line}" stroke="{PATH}" stroke-width="{1 if thin else 1.5}"/>'


def _memory(memory: Memory, layout: Layout, number: int, row: str) -> Iterator[str]:
    top = layout.memory_tops[number]
    end = LEFT + layout.plot
    what = "memory" if memory.unit == "bytes" else f"activations kept, in {memory.unit}"
    sides = [side for side in ("planned", "measured") if getattr(memory, side)]
    both = " (planned: line, measured: area)" if len(sides) == 2 else f", {sides[0]}"
    kind = "memory planned" if memory.planned else "memory"
    yield f'<g class="{kind}"><text class="head" x="{LEFT}" y="{top - 9}">{what}{both}</text>'
    peak = _amount(memory.peak, memory.unit)
    yield f'<text class="fact" x="{end}" y="{top - 9}" text-anchor="end">peak {peak}</text>'
    for rank in range(max(len(memory.planned), len(memory.measured))):
        base = layout.y_memory(number, rank)
        yield f'<path d="M{LEFT} {base + 0.5}h{layout.plot}" stroke="{GRID}"/>'
        yield f'<g clip-path="url(#plot)"><g class="time" transform="translate({LEFT},0)">'
        own = 0.0
        for side in reversed(sides):
            curve = getattr(memory, side)[rank]
            own = max(own, curve.peak)
            is_area = side == "measured" or len(sides) == 1
            yield _curve(curve, memory.peak, layout, base, is_area=is_area)
        yield "</g></g>"
        yield _row(layout, f"{row} {rank}", base - layout.row / 2 + 4, _amount(own, memory.unit))
    yield "</g>"


def _curve(curve: Curve, peak: float, layout: Layout, base: int, *, is_area: bool) -> str:
    """Steps over the whole axis; an area, or a line alone."""
    scale = (layout.row - 1) / peak if peak else 0.0
    line, last = f"M0 {base}", 0.0
    for time, amount in zip(curve.times, curve.amounts, strict=True):
        if amount != last:
            line += f"H{layout.x(time):.2f}V{base - amount * scale:.1f}"
            last = amount
    line += f"H{layout.plot}"
    if is_area:
        return f'<path d="{line}V{base}z" fill="{MEMORY}" opacity=".55"/>'
    return f'<path class="line" d="{line}" fill="none" stroke="{INK}" stroke-width="1.2"/>'


def _amount(amount: float, unit: str) -> str:
    if unit == "bytes":
        return bytes_text(amount)
    return f"{amount:g} {unit.removesuffix('s') if amount == 1 else unit}"
