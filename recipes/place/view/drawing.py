"""What the pictures share: colours for light and dark, and the SVG around a drawing."""

from collections.abc import Iterable
from html import escape

FONT = "Inter, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"

LIGHT = {
    "paper": "#fbfbfc",
    "card": "#ffffff",
    "ink": "#1f2430",
    "muted": "#646b79",
    "line": "#dfe2e8",
    "soft": "#eef0f3",
    "warn": "#c75000",
    "ours": "#0072b2",
    "plain": "#d55e00",
    "swap": "#007a5a",
}
DARK = {
    "paper": "#14171c",
    "card": "#1c2027",
    "ink": "#e7e9ee",
    "muted": "#9aa3b2",
    "line": "#343b47",
    "soft": "#262c35",
    "warn": "#ff9a4d",
    "ours": "#5ab4f0",
    "plain": "#ff9a4d",
    "swap": "#3fc79a",
}
HUES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b7ab1c", "#8a6fc0")
"""Of models, told apart by most people who see colours otherwise; names are written beside them."""


def _variables(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
svg text {{ font: 11px {FONT}; fill: var(--ink); }}
svg .muted {{ fill: var(--muted); }} svg .head {{ font-size: 12.5px; font-weight: 600; }}
"""
"""The colours by name and the texts of drawings; a page has it once, a lone SVG too."""


SHADES = (0.6, 0.4, 0.8)
"""Of models that share a hue."""


def look(number: int) -> tuple[str, float]:
    """Hue and opacity of a model, by its index.

    >>> look(0), look(9)
    (('#0072b2', 0.6), ('#e69f00', 0.4))
    """
    return HUES[number % len(HUES)], SHADES[number // len(HUES) % len(SHADES)]


def svg(
    width: float, height: float, parts: Iterable[str], label: str, *, lone: bool = False
) -> str:
    """The SVG element around some parts.

    Args:
        lone: it is to stand in a file of its own, with its style and its paper.
    """
    head = [f"<style>{STYLE}</style>", box(0, 0, width, height, "var(--card)")] if lone else []
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
            f'viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label)}">',
            *head,
            *parts,
            "</svg>",
        )
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """Words at a place."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def box(
    x: float, y: float, width: float, height: float, fill: str, tip: str = "", more: str = ""
) -> str:
    """A rectangle that says more under the pointer; ``more`` are attributes."""
    title = f"<title>{escape(tip)}</title>" if tip else ""
    size = f'width="{max(width, 0):.2f}" height="{max(height, 0):.2f}"'
    return f'<rect x="{x:.2f}" y="{y:.2f}" {size} rx="2" fill="{fill}" {more}>{title}</rect>'


def line(
    x1: float, y1: float, x2: float, y2: float, stroke: str = "var(--line)", more: str = ""
) -> str:
    """A straight line."""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{stroke}" {more}/>'


def fitted(words: str, width: float) -> str:
    """Words that take about so many pixels, shortened in the middle where they must be.

    >>> fitted("a-long-name-of-a-model", 60), fitted("chat", 60)
    ('a-lo…odel', 'chat')
    """
    room = int(width / 6.2)
    if len(words) <= room:
        return words
    half = (room - 1) // 2
    return f"{words[:half]}…{words[len(words) - half :]}" if half > 0 else ""
