"""``way_bars``: how well the traffic is served in other ways, beside the bound."""

from collections.abc import Iterator, Sequence

from recipes.place.planning.tables import share
from recipes.place.planning.ways import Way
from recipes.place.view.drawing import box, line, svg, text

_LEFT, _WIDTH, _STEP, _TOP = 150, 620, 30, 26


def way_bars(ways: Sequence[Way], bound: float) -> str:
    """Two bars a way: on the traffic that was searched with, and below it on another draw."""
    parts = [*_legend()]
    for at, way in enumerate(ways):
        y = _TOP + at * _STEP
        colour = "var(--ours)" if at == 0 else "var(--muted)"
        parts.append(text(0, y + 14, way.name, "head" if at == 0 else ""))
        for offset, value, shade in ((0, way.searched, 0.9), (10, way.fresh, 0.45)):
            tip = f"{way.name}: {value:.2%}"
            more = f'fill-opacity="{shade}"'
            parts.append(box(_LEFT, y + offset, value * _WIDTH, 9, colour, tip, more))
        told = f"{share(way.searched)}, {share(way.fresh)}"
        parts.append(text(_LEFT + _WIDTH + 12, y + 14, told, "muted"))
    bottom = _TOP + len(ways) * _STEP
    x = _LEFT + bound * _WIDTH
    parts.append(line(x, _TOP - 4, x, bottom - 6, "var(--ink)", 'stroke-dasharray="4 3"'))
    parts.append(
        text(x, bottom + 8, f"at most {share(bound)} on the draw searched with", "muted", "end")
    )
    return svg(_LEFT + _WIDTH + 190, bottom + 14, parts, "requests served in time, simulated")


def _legend() -> Iterator[str]:
    for x, name, shade in ((_LEFT, "the draw searched with", 0.9), (_LEFT + 190, "another", 0.45)):
        yield box(x, 4, 11, 9, "var(--ours)", "", f'fill-opacity="{shade}"')
        yield text(x + 17, 13, name, "muted")
