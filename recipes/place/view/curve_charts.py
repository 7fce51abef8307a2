"""``curve_charts``: SLO attainment over rate, CV, limits and devices, a panel each."""

import math
from collections.abc import Iterator, Sequence

from recipes.place.planning.curves import Curve
from recipes.place.planning.ways import OURS, REPLICATION, SWAPPING
from recipes.place.view.drawing import line, svg, text

_PANEL, _TALL, _LEFT, _TOP, _BOTTOM, _BETWEEN = 470, 190, 54, 46, 44, 34
LOOKS = {
    OURS: ("var(--ours)", "", "circle"),
    REPLICATION: ("var(--plain)", "6 4", "square"),
    SWAPPING: ("var(--swap)", "2 3", "triangle"),
}
"""Colour, dashes and marker of each way: any one of them tells them apart."""
TARGET = 0.99


def curve_charts(curves: Sequence[Curve], *, lone: bool = True) -> str:
    """Panels two by two with one scale of attainment; the dotted upright is where the task is.

    Args:
        lone: the SVG is to stand in a file of its own.
    """
    least = min(
        (share for curve in curves for point in curve.points for share in point.attained.values()),
        default=0.0,
    )
    floor = min(0.9, math.floor(least * 10) / 10)
    parts = [*_legend([way for way in LOOKS if any(way in one.ways for one in curves)])]
    for number, curve in enumerate(curves):
        row, column = divmod(number, 2)
        x = 14 + _LEFT + column * (_PANEL + _LEFT + _BETWEEN)
        parts += _panel(curve, x, _TOP + row * (_TALL + _BOTTOM + 16), floor)
    width = 14 + min(len(curves), 2) * (_LEFT + _PANEL + _BETWEEN)
    height = _TOP + math.ceil(len(curves) / 2) * (_TALL + _BOTTOM + 16)
    return svg(max(width, 560), height, parts, "SLO attainment, simulated", lone=lone)


def _legend(ways: Sequence[str]) -> Iterator[str]:
    x = 14.0 + _LEFT
    for way in ways:
        colour, dash, marker = LOOKS[way]
        yield line(x, 14, x + 28, 14, colour, f'stroke-width="2" stroke-dasharray="{dash}"')
        yield _marker(x + 14, 14, marker, colour)
        yield text(x + 36, 18, way)
        x += 62 + 6.4 * len(way)
    yield line(x, 14, x + 24, 14, "var(--muted)", 'stroke-dasharray="1 3"')
    yield text(x + 32, 18, "where the config is", "muted")


def _panel(curve: Curve, x: float, y: float, floor: float) -> Iterator[str]:
    values = [point.value for point in curve.points]
    low, high = min(values), max(values)

    def at_x(value: float) -> float:
        return x + ((value - low) / (high - low) if high > low else 0.5) * _PANEL

    def at_y(share: float) -> float:
        return y + (1 - (share - floor) / (1 - floor)) * _TALL

    span = round((1 - floor) * 100)
    every = 2 if span <= 10 else 10 if span <= 50 else 20
    for percent in range(0, span + 1, every):
        share = 1 - percent / 100
        yield line(x, at_y(share), x + _PANEL, at_y(share))
        yield text(x - 8, at_y(share) + 4, f"{share:.0%}", "muted", "end")
    yield line(x, at_y(TARGET), x + _PANEL, at_y(TARGET), "var(--muted)", 'stroke-dasharray="5 4"')
    yield text(x + _PANEL + 4, at_y(TARGET) + 4, "99%", "muted")
    here = at_x(curve.here)
    yield line(here, y - 6, here, y + _TALL, "var(--muted)", 'stroke-dasharray="1 3"')
    shown = -math.inf
    for value in values:
        yield line(at_x(value), y + _TALL, at_x(value), y + _TALL + 4, "var(--muted)")
        if at_x(value) - shown > 34:
            shown = at_x(value)
            yield text(shown, y + _TALL + 17, f"{value:.3g}", "muted", "middle")
    yield text(x + _PANEL / 2, y + _TALL + 33, curve.label, "head", "middle")
    for way in reversed(curve.ways):  # the first on top
        colour, dash, marker = LOOKS[way]
        spots = [(at_x(one.value), at_y(one.attained[way]), one) for one in curve.points]
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py, _ in spots)
        yield (
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash}" stroke-linejoin="round"/>'
        )
        for px, py, point in spots:
            tip = f"{way}: {point.attained[way]:.2%} at {point.value:.4g} {curve.label}"
            yield _marker(px, py, marker, colour, tip)


def _marker(x: float, y: float, kind: str, colour: str, tip: str = "") -> str:
    title = f"<title>{tip}</title>" if tip else ""
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}">{title}</circle>'
    if kind == "square":
        corner = f'x="{x - 3.5:.1f}" y="{y - 3.5:.1f}"'
        return f'<rect {corner} width="7" height="7" fill="{colour}">{title}</rect>'
    shape = f"M{x:.1f} {y - 4.8:.1f}l4.6 8h-9.2z"
    return f'<path d="{shape}" fill="{colour}">{title}</path>'
