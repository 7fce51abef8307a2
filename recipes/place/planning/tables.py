"""Plain text tables, and numbers as people read them."""

import math
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they must be; the first to the left, the others to the right.

    >>> print(table(["model", "p50"], [["chat", "12 ms"], ["a", "3 ms"]]))
    model    p50
    chat   12 ms
    a       3 ms
    """
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def seconds(value: float) -> str:
    """
    >>> seconds(0.01234), seconds(2.5), seconds(float("nan"))
    ('12.3 ms', '2.50 s', '-')
    """
    if math.isnan(value):
        return "-"
    if value >= 1:
        return f"{value:.2f} s" if value < 100 else f"{value:,.0f} s"
    return f"{value * 1e3:.3g} ms"


def share(value: float) -> str:
    """Rounded down, so that 100 % is said of nothing less.

    >>> share(1.0), share(0.99999), share(0.5)
    ('100 %', '99.99 %', '50.00 %')
    """
    return "100 %" if value >= 1 else f"{math.floor(value * 1e4) / 100:.2f} %"


def points(gain: float) -> str:
    """
    >>> points(0.0123), points(0.0)
    ('+1.23 points', '+0.00 points')
    """
    return f"{gain * 100:+.2f} points"
