"""Colours: the hue says what is done, the lightness tells sequences apart."""

import colorsys

from blocks.pipeline.action import Kind

NUM_SHADES = 4

NAMES = {
    Kind.FORWARD: "forward",
    Kind.RECOMPUTE: "recompute",
    Kind.BACKWARD: "input gradients",
    Kind.FULL_BACKWARD: "backward",
    Kind.WEIGHT: "weight gradients",
}
_HUES = {  # degrees, saturation, lightness of the darkest and the lightest shade
    Kind.FORWARD: (214, 0.62, 0.42, 0.72),
    Kind.RECOMPUTE: (265, 0.42, 0.52, 0.78),
    Kind.BACKWARD: (30, 0.85, 0.48, 0.74),
    Kind.FULL_BACKWARD: (16, 0.72, 0.47, 0.73),
    Kind.WEIGHT: (155, 0.45, 0.36, 0.64),
}

INK = "#1f2430"
MUTED = "#6b7280"
GRID = "#e5e7eb"
IDLE = "#f3f4f6"
WAIT = "#d7dae0"
PATH = "#111827"
MEMORY = "#7c8aa5"


def shade_of(sequence: int) -> int:
    """Which shade a sequence has: neighbours are two apart where they can be.

    >>> [shade_of(sequence) for sequence in range(5)]
    [0, 2, 1, 3, 0]
    """
    return (0, 2, 1, 3)[sequence % NUM_SHADES]


def colour(kind: Kind, shade: int) -> str:
    """A colour as ``#rrggbb``.

    >>> colour(Kind.FORWARD, 0)
    '#2962ae'
    """
    hue, saturation, dark, light = _HUES[kind]
    lightness = dark + (light - dark) * shade / (NUM_SHADES - 1)
    parts = colorsys.hls_to_rgb(hue / 360, lightness, saturation)
    return "#" + "".join(f"{round(part * 255):02x}" for part in parts)


def is_dark(kind: Kind, shade: int) -> bool:
    """Whether white text is read more easily on it than black text."""
    parts = [int(colour(kind, shade)[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = sum(w * part for w, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return luminance < 0.24
