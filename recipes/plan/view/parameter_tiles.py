"""``parameter_tiles``: how the parameters of a layer are cut, each as a small matrix."""

from collections.abc import Mapping, Sequence

from blocks.sharding import Mesh, Replicate, Shard
from recipes.plan.stage_plan import ParameterPlacement, parse_placements
from recipes.plan.view.drawing import INK, svg, text

_MAX_CUTS = 8
TILES = (
    "a tile is a parameter: lines across cut its first dim, lines down another, "
    f"{_MAX_CUTS} parts at most are drawn; a dotted square is a sum still to be taken; "
    "a colour is a mesh axis"
)
"""What is drawn, for people."""

_SIDE, _STEP, _LINE, _LEFT, _RIGHT = 34, 44, 15, 330, 190
_AXES = ("#296bae", "#d98b3a", "#3f9c8f", "#8a6fc0")
"""Colours of the mesh axes."""


def parameter_tiles(parameters: Mapping[str, ParameterPlacement], meshes: Sequence[Mesh]) -> str:
    """A row for the parameters that are cut alike: at rest, their gradient, their optimizer state.

    Args:
        parameters: by name.
        meshes: that they are cut over, of axes of the same names.
    """
    parts = []
    for at, name in enumerate(("parameter at rest", "gradient", "optimizer")):
        parts.append(text(_LEFT + at * _RIGHT, 14, name, "head"))
    alike: dict[ParameterPlacement, list[str]] = {}
    for name, placed in parameters.items():
        alike.setdefault(placed, []).append(name)
    y = 24.0
    for placed, names in alike.items():
        height = max(_STEP, _LINE * len(names) + 10)
        top = y + max(0.0, (_SIDE - _LINE * len(names)) / 2)
        parts += [text(0, top + _LINE * at + 11, _shortened(name)) for at, name in enumerate(names)]
        for at, placements in enumerate(placed):
            parts += _tile(_LEFT + at * _RIGHT, y, placements, meshes[0])
        y += height
    for axis, name in enumerate(meshes[0].axes):
        x = _LEFT + axis * 150
        sizes = " or ".join(str(size) for size in dict.fromkeys(m.sizes[axis] for m in meshes))
        parts.append(
            f'<rect x="{x}" y="{y + 4:g}" width="11" height="3" fill="{_AXES[axis % 4]}"/>'
        )
        parts.append(text(x + 18, y + 10, f"axis {name} of {sizes}", "muted"))
    return svg(_LEFT + 3 * _RIGHT, y + 20, parts, "how the parameters of a layer are cut")


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


def _shortened(name: str, room: int = 52) -> str:
    """
    >>> _shortened("model.layers.*.mlp.up_proj.weight", 20)
    '….mlp.up_proj.weight'
    """
    return name if len(name) <= room else "…" + name[1 - room :]
