"""``parameter_tiles``: how the parameters of a layer are cut, each as a small matrix."""

from blocks.sharding import Mesh, Replicate, Shard
from recipes.plan.stage_plan import Pattern, parse_placements
from recipes.plan.view.drawing import INK, svg, text

_SIDE, _STEP, _LEFT, _MAX_CUTS = 34, 46, 290, 8
_AXES = ("#296bae", "#d98b3a", "#3f9c8f", "#8a6fc0")
"""Colours of the mesh axes."""


def parameter_tiles(pattern: Pattern, mesh: Mesh) -> str:
    """A row a parameter: at rest, its gradient, its optimizer state; lines where an axis cuts.

    A cut of the first dim is drawn across, one of the others downwards; a sum that is still to be
    taken is dotted. Colours tell the mesh axes apart.
    """
    parts = [text(0, 14, "parameter", "head")]
    for at, name in enumerate(("at rest", "gradient", "optimizer")):
        parts.append(text(_LEFT + at * 190, 14, name, "head"))
    y = 24.0
    for name, placed in pattern.parameters.items():
        parts.append(text(0, y + _SIDE / 2 + 4, _shortened(name)))
        for at, placements in enumerate(placed):
            parts += _tile(_LEFT + at * 190, y, placements, mesh)
        y += _STEP
    for axis, name in enumerate(mesh.axes):
        x = _LEFT + axis * 150
        parts.append(
            f'<rect x="{x}" y="{y + 4:g}" width="11" height="3" fill="{_AXES[axis % 4]}"/>'
        )
        parts.append(text(x + 18, y + 10, f"{name} ({mesh.sizes[axis]})", "muted"))
    return svg(_LEFT + 580, y + 20, parts, "how the parameters of a layer are cut")


def _tile(x: float, y: float, placements: str, mesh: Mesh) -> list[str]:
    parts = [
        f'<rect x="{x}" y="{y:g}" width="{_SIDE}" height="{_SIDE}" fill="#eef2f7" '
        f'stroke="{INK}" stroke-width=".8"/>'
    ]
    num_cuts: dict[int, int] = {}  # by the axes before, of every dim
    for axis, placement in enumerate(parse_placements(placements)):
        size = mesh.sizes[axis]
        if size == 1 or placement == Replicate():
            continue
        colour = _AXES[axis % 4]
        if not isinstance(placement, Shard):
            dots = f'stroke-dasharray="2 2" stroke="{colour}" stroke-width="2" fill="none"'
            inset = 4 + 4 * axis
            side = _SIDE - 2 * inset
            parts.append(
                f'<rect x="{x + inset}" y="{y + inset:g}" width="{side}" height="{side}" {dots}/>'
            )
            continue
        before = num_cuts.get(placement.dim, 1)
        cuts = min(before * size, max(before, _MAX_CUTS))
        num_cuts[placement.dim] = cuts
        for cut in range(1, cuts):
            if before > 1 and cut * before % cuts == 0:
                continue  # an axis before cuts there
            at = _SIDE * cut / cuts
            ends = (
                f'x1="{x}" x2="{x + _SIDE}" y1="{y + at:g}" y2="{y + at:g}"'
                if placement.dim == 0
                else f'x1="{x + at:g}" x2="{x + at:g}" y1="{y:g}" y2="{y + _SIDE:g}"'
            )
            parts.append(f'<line {ends} stroke="{colour}" stroke-width="1.4"/>')
    parts.append(text(x + _SIDE + 8, y + _SIDE / 2 + 4, placements, "muted"))
    return parts


def _shortened(name: str, room: int = 44) -> str:
    """
    >>> _shortened("model.layers.*.mlp.up_proj.weight", 20)
    '….mlp.up_proj.weight'
    """
    return name if len(name) <= room else "…" + name[1 - room :]
