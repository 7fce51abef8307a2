"""Sizes as people write them: ``256MiB``, ``1.5GiB``, ``64K``."""

import re

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(i?b)?\s*", re.IGNORECASE)


def parse_bytes(text: str) -> int:
    """Bytes in a size such as ``256MiB``, ``256M`` or ``1.5g``; units are powers of 1024.

    >>> parse_bytes("1.5GiB")
    1610612736
    """
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise ValueError(f"size: expected a number with KiB, MiB or GiB, got {text!r}")
    return int(float(match[1]) * 1024 ** _UNITS[match[2].lower()])


def format_bytes(count: int | float) -> str:
    """A size for people.

    >>> format_bytes(268435456)
    '256.0 MiB'
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError(count)
