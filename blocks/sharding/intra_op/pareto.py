"""``pareto``: choices of labels that trade time for memory."""

import itertools

import numpy as np

from blocks._checks import check_count
from blocks.sharding.intra_op.elimination_order import MAX_ENTRIES
from blocks.sharding.intra_op.fans import dual_of
from blocks.sharding.intra_op.hints import Hints
from blocks.sharding.intra_op.minimise import minimise
from blocks.sharding.intra_op.problem import Problem
from blocks.sharding.intra_op.table_cache import TableCache
from blocks.sharding.intra_op.with_memory import Point


def pareto(
    problem: Problem,
    max_points: int = 8,
    *,
    hints: Hints | None = None,
    max_entries: int | float = MAX_ENTRIES,
    cache: TableCache | None = None,
) -> tuple[Point, ...]:
    """Corners of the lower hull of seconds and bytes: the quickest choice first, the smallest last.

    Each is the best at some price of a byte. Where the hull has more corners, those are kept that
    cut off the most.

    Args:
        max_points: 1 for the quickest alone.
        hints: how labels and variables hang together.

    Reference:
        Aneja and Nair, "Bicriteria transportation problem", 1979 (weighted sums, halving).
    """
    check_count("max_points", max_points)
    cache = cache or TableCache()
    dual = None if hints is None else dual_of(problem, hints)

    def least(priced: Problem, start: tuple[int, ...] | None) -> Point:
        found = minimise(
            priced,
            hints=hints,
            start=start,
            sweeps=0,
            max_entries=max_entries,
            cache=cache,
            dual=dual,
        )
        labels = found.labels
        return Point(problem.value(labels), problem.bytes(labels), labels)

    quickest = least(problem, None)
    if max_points == 1:
        return (quickest,)
    # At this price all bytes of the quickest cost as much as a thousand times its seconds.
    scale = sum(float(s[np.isfinite(s)].max()) for s in problem.seconds)
    dear = 1e3 * max(quickest.seconds, scale) / max(quickest.bytes, 1.0)
    smallest = least(problem.priced(dear), quickest.labels)
    if smallest.bytes >= quickest.bytes:
        return (quickest,)
    found, closed = _undominated([quickest, smallest]), set[tuple[float, float]]()
    while len(found) < max_points:
        open_pairs = [
            p for p in itertools.pairwise(found) if (p[0].bytes, p[1].bytes) not in closed
        ]
        if not open_pairs:
            break
        quick, small = max(open_pairs, key=_area)
        price = (small.seconds - quick.seconds) / (quick.bytes - small.bytes)
        between = least(problem.priced(price), small.labels)
        line = quick.seconds + price * quick.bytes
        if between.seconds + price * between.bytes >= line * (1 - 1e-9):
            closed.add((quick.bytes, small.bytes))
            continue
        found = _undominated([*found, between])
    return tuple(found)


def _undominated(points: list[Point]) -> list[Point]:
    """Those than which no other is as quick and as small, the quickest first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: one[:2]):
        if not kept or point.bytes < kept[-1].bytes:
            kept.append(point)
    return kept


def _area(pair: tuple[Point, Point]) -> float:
    return (pair[1].seconds - pair[0].seconds) * (pair[0].bytes - pair[1].bytes)
