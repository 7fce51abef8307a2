"""What the pictures share: colours of stages and of causes, and the SVG around a drawing."""

import colorsys
from collections.abc import Iterable
from html import escape

INK, MUTED, GRID, IDLE = "#1f2430", "#6b7280", "#e5e7eb", "#f3f4f6"
FONT = "Inter, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"
_STYLE = f"""
text {{ font: 11px {FONT}; fill: {INK}; }}
.muted {{ fill: {MUTED}; }} .head {{ font-size: 12.5px; font-weight: 600; }}
.on {{ fill: #fff; font-weight: 600; }}
"""

CAUSES = ("#296bae", "#3f9c8f", "#8a6fc0", "#d98b3a", "#b9c0cc")
"""Colours of the kinds of bytes, darkest use first."""


def stage_colour(stage: int, num_stages: int) -> str:
    """A colour for a stage; neighbours are far apart on the wheel.

    >>> stage_colour(0, 4) != stage_colour(1, 4)
    True
    """
    turns = max(num_stages, 1)
    step = next(k for k in range(max(1, round(turns * 0.38)), 2 * turns + 1) if _prime(k, turns))
    hue = (0.58 + (stage * step % turns) / turns) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, 0.46, 0.48)
    return "#" + "".join(f"{round(part * 255):02x}" for part in (red, green, blue))


def _prime(a: int, b: int) -> bool:
    while b:
        a, b = b, a % b
    return a == 1


def svg(width: float, height: float, parts: Iterable[str], label: str) -> str:
    """The SVG element around some parts."""
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">',
            f"<style>{_STYLE}</style>",
            *parts,
            "</svg>",
        )
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words at a place."""
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, fill: str, tip: str = "") -> str:
    """A rectangle that says more under the pointer."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    size = f'width="{max(width, 0):.2f}" height="{height:g}"'
    return f'<rect x="{x:.2f}" y="{y:g}" {size} rx="2" fill="{fill}">{title}</rect>'
