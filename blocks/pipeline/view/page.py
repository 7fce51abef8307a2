"""``to_html``: a figure as one HTML page that needs no network.

The lanes can be zoomed and moved, an action tells its times, and sliders show other simulated
plans above the same trace.
"""

import json
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib import resources
from typing import Any, NamedTuple

from blocks._checks import check
from blocks.pipeline.action import Kind
from blocks.pipeline.timeline import Timeline
from blocks.pipeline.trace import Trace
from blocks.pipeline.view.bars import LETTER, separators_from
from blocks.pipeline.view.figure import MEASURED, Figure, Panel, panel_of
from blocks.pipeline.view.layout import GAP, LEFT, Layout, layout_of
from blocks.pipeline.view.palette import GRID, NAMES, NUM_SHADES, is_dark, shade_of
from blocks.pipeline.view.scale import time_text
from blocks.pipeline.view.svg import drawing, panel_parts

_KINDS = tuple(NAMES)
_STEPS = 1 << 20
"""Times are written as whole numbers of this part of the axis."""


class Slider(NamedTuple):
    """Plans to choose among.

    name: what changes, such as ``transfer``.
    choices: what it is changed to, and the plan that comes of it, of as many ranks as the figure.
    shown: which of the choices is the plan the figure shows.
    """

    name: str
    choices: Sequence[tuple[str, Timeline]]
    shown: int = 0


def to_html(
    figure: Figure, *, sliders: Sequence[Slider] = (), trace: Trace | None = None, width: int = 1240
) -> str:
    """The page.

    Args:
        figure: what to show; sliders need one with a plan.
        sliders: precomputed answers to what-if questions.
        trace: names the tokens of a slice under the pointer; None leaves them out.
        width: of the drawing in pixels.

    Raises:
        ValueError: sliders without a plan, or with plans of another number of ranks.
    """
    others: list[Panel] = list(figure.panels)
    cuts = trace.schedule.num_slices if trace is not None else ()
    told = [trace is not None] * len(others)
    data_sliders = []
    for slider in sliders:
        planned = figure.panels[0].title != MEASURED
        check(planned, "sliders", "a figure with a plan", "a trace alone")
        inside = 0 <= slider.shown < len(slider.choices)
        check(inside, f"slider {slider.name}", "a choice that is shown", slider.shown)
        choices = []
        for number, (label, timeline) in enumerate(slider.choices):
            ranks = timeline.schedule.num_ranks
            check(ranks == figure.num_ranks, "slider", f"{figure.num_ranks} ranks", ranks)
            content = 0
            if number != slider.shown:
                content = len(others)
                title = f"simulated, {slider.name} {label}"
                others.append(panel_of(timeline, title, figure.unit))
                told.append(timeline.schedule.num_slices == cuts)
            choices.append({"label": label, "panel": content})
        data_sliders.append(choices)
    layout = layout_of(figure, width, has_title=False)
    hidden = [
        part
        for number in range(len(figure.panels), len(others))
        for part in panel_parts(others[number], layout, 0, f'data-content="{number}" hidden=""')
    ]
    marks = f'<g clip-path="url(#plot)"><g id="same" transform="translate({LEFT},0)"></g></g>'
    data = _data(figure, layout, zip(others, told, strict=True))
    data |= {"sliders": data_sliders, "bounds": trace.bounds if trace is not None else None}
    script = _read("page.js").replace("@data@", json.dumps(data, separators=(",", ":")))
    filled = {
        "title": escape(figure.title),
        "width": str(width + 40),
        "facts": _facts(figure),
        "sliders": "\n".join(_slider(*pair) for pair in enumerate(sliders)),
        "svg": drawing(figure, layout, foot=(*hidden, marks)),
        "script": script.replace("</", "<\\/"),
    }
    return re.sub(r"@(\w+)@", lambda place: filled[place[1]], _read("page.html"))


def _read(name: str) -> str:
    return resources.files("blocks.pipeline.view").joinpath(name).read_text(encoding="utf-8")


def _facts(figure: Figure) -> str:
    shown = [
        f'<li class="key"><span>{escape(panel.title.split(" (")[0])}</span>'
        f"{escape(time_text(panel.span, figure.unit))}</li>"
        for panel in figure.panels
    ]
    shown += [f"<li><span>{escape(name)}</span>{escape(fact)}</li>" for name, fact in figure.facts]
    return "".join(shown)


def _slider(number: int, slider: Slider) -> str:
    last, shown = len(slider.choices) - 1, slider.shown
    label = escape(slider.choices[shown][0])
    return (
        f"<label>{escape(slider.name)}"
        f'<input type="range" min="0" max="{last}" value="{shown}" data-slider="{number}">'
        f"<output>{label}</output></label>"
    )


def _data(figure: Figure, layout: Layout, panels: Iterable[tuple[Panel, bool]]) -> dict[str, Any]:
    """What the script must know of the drawing."""
    tick = layout.span / _STEPS or 1.0
    every = list(panels)
    bars = [bar for panel, _ in every for lane in panel.lanes for bar in lane]
    return {
        "left": LEFT,
        "plot": layout.plot,
        "width": layout.width,
        "lane": layout.lane,
        "gap": GAP,
        "tops": layout.tops,
        "axis": (layout.tops[0], layout.axis),
        "grid": GRID,
        "letter": LETTER,
        "span": layout.span or 1.0,
        "tick": tick,
        "unit": figure.unit,
        "cut": any(bar.action.slice for bar in bars),
        "kinds": [(kind.value, NAMES[kind]) for kind in _KINDS],
        "dark": [[is_dark(kind, shade_of(n)) for n in range(NUM_SHADES)] for kind in _KINDS],
        "shown": list(range(len(figure.panels))),
        "panels": [
            {
                "lines": round(separators_from(panel, layout), 3),
                "tokens": told,
                "span": panel.span,
                "lanes": [[_bar(bar, tick) for bar in lane] for lane in panel.lanes],
            }
            for panel, told in every
        ],
    }


def _bar(bar: Any, tick: float) -> list[int]:
    """A bar as the script reads it, without trailing unknowns."""
    action = bar.action
    row = [
        round(bar.start / tick),
        round(bar.end / tick),
        _KINDS.index(Kind(action.kind)),
        action.sequence,
        action.slice,
        action.stage,
    ]
    if bar.cpu is not None or bar.live_bytes is not None:
        row.append(-1 if bar.cpu is None else round(bar.cpu / tick))
    if bar.live_bytes is not None:
        row.append(bar.live_bytes)
    return row
