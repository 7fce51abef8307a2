"""Straight lines between the rows of a table."""

import bisect
from collections.abc import Sequence


def interpolate(
    points: Sequence[float | int], rows: Sequence[tuple[float, ...]], point: float | int
) -> tuple[float, ...]:
    """The row at ``point``: exact where it was measured, straight in between.

    Below the first point its row holds. Above the last one, each column goes on with the slope of
    the last two rows but never falls; a lone row grows in proportion.

    >>> interpolate([10, 20], [(1.0, 4.0), (2.0, 4.0)], 15)
    (1.5, 4.0)
    >>> interpolate([10, 20], [(1.0,), (2.0,)], 5), interpolate([10, 20], [(1.0,), (2.0,)], 40)
    ((1.0,), (4.0,))
    """
    if point <= points[0]:
        return rows[0]
    if len(points) == 1:
        return tuple(value * (point / points[0]) for value in rows[0])
    high = min(bisect.bisect_left(points, point), len(points) - 1)
    if points[high] == point:
        return rows[high]
    share = (point - points[high - 1]) / (points[high] - points[high - 1])
    mixed = tuple(a + share * (b - a) for a, b in zip(rows[high - 1], rows[high], strict=True))
    if share > 1:
        return tuple(max(value, last) for value, last in zip(mixed, rows[high], strict=True))
    return mixed
