"""What the slice programs share: prices of all slices between points, and grids of points.

Needs numpy, no torch.
"""

from collections.abc import Callable, Sequence
from typing import Any

from blocks._checks import check, check_count, fail
from blocks.pipeline.cost import CostSurface
from blocks.pipeline.slice_time import SliceTime

Cost = CostSurface | SliceTime | Callable[[int, int], Any]
"""Seconds of a slice on one stage from its length and the tokens of prefix before it.

A function with the attribute ``takes_arrays`` is called once, with arrays for all slices.
"""

MAX_CELLS = 512


def coarse_step(seq_len: int, granularity: int, max_cells: int, num_slices: int | None) -> int:
    """The smallest ``granularity`` times a power of two that leaves at most ``max_cells`` cells.

    Raises:
        ValueError: a size below 1; more slices than cells.
    """
    sizes = {"seq_len": seq_len, "granularity": granularity, "max_cells": max_cells}
    for name, value in sizes.items():
        check_count(name, value)
    step = granularity
    while -(-seq_len // step) > max_cells:
        step *= 2
    if num_slices is not None:
        check_count("num_slices", num_slices)
        num_cells = -(-seq_len // step)
        ok = 1 <= num_slices <= num_cells
        hint = "max_cells allows finer ones" if step > granularity else ""
        check(ok, "num_slices", f"1 to {num_cells} slices of {step} tokens", num_slices, hint)
    return step


def every_point(seq_len: int, step: int) -> list[int]:
    """Multiples of ``step`` and the end.

    >>> every_point(20, 8)
    [0, 8, 16, 20]
    """
    return [*range(0, seq_len, step), seq_len]


def points_near(bounds: Sequence[int], step: int, finer: int) -> list[int]:
    """The bounds, and multiples of ``finer`` within ``step`` of an inner one, ascending.

    >>> points_near((0, 16, 40), 8, 4)
    [0, 8, 12, 16, 20, 24, 40]
    """
    near = {
        (bound + shift) // finer * finer
        for bound in bounds[1:-1]
        for shift in range(-step, step + 1, finer)
    }
    return sorted({*bounds, *(point for point in near if 0 < point < bounds[-1])})


def cost_table(price: Callable[[Any, Any], Any], points: Sequence[int]) -> Any:
    """Float64 ``[num_points, num_points]``: the slice from point i to point j, infinity for j <= i.

    Raises:
        ValueError: a cost that is negative or no number.
    """
    import numpy as np

    first, last = np.triu_indices(len(points), 1)
    at = np.asarray(points, np.int64)
    start = at[first]
    seconds = np.asarray(price(at[last] - start, start), np.float64)
    wrong = np.flatnonzero(~(seconds >= 0))
    if len(wrong):
        where = int(first[wrong[0]]), int(last[wrong[0]])
        what = f"cost of the slice from {points[where[0]]} to {points[where[1]]}"
        raise fail(what, "at least 0 seconds", seconds[wrong[0]])
    table = np.full((len(points), len(points)), np.inf)
    table[first, last] = seconds
    return table


def seconds_of(cost: Cost) -> Callable[[Any, Any], Any]:
    """Any cost as a function of arrays of lengths and prefixes."""
    if isinstance(cost, CostSurface | SliceTime):
        return cost.as_float()
    if getattr(cost, "takes_arrays", False):
        return cost

    def each(lengths: Any, starts: Any) -> list[float]:
        pairs = zip(lengths.tolist(), starts.tolist(), strict=True)
        return [float(cost(num_tokens, start)) for num_tokens, start in pairs]

    return each
