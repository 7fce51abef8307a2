"""What a planner may choose between before it orders anything. Needs no torch, but numpy."""

import itertools
from collections.abc import Iterator, Sequence

from blocks.pipeline.cost import CostSurface
from blocks.pipeline.slicing import slice_tokens
from blocks.pipeline.uniform_slices import uniform_slices

MAX_CELLS = 128
"""Cells of the coarsest grid that cuts are searched on."""
CUTS = ("uniform", "equal_cost", "between", "least_makespan")
MAX_EVERY_CUT = 64
"""Up to so many slicings there may be for all of them to be tried."""


def slicings(
    cost: CostSurface,
    seq_len: int,
    num_ranks: int,
    num_sequences: int,
    num_slices: Sequence[int],
    *,
    granularity: int,
    cuts: Sequence[str],
) -> dict[tuple[int, ...], str]:
    """Bounds worth trying, with the cut they come from; every one once.

    On a grid so coarse that there are few, every slicing into ``num_slices`` slices is among them.
    """
    found: dict[tuple[int, ...], str] = {}
    num_cells = -(-seq_len // granularity)
    if set(cuts) == set(CUTS) and 2 ** (num_cells - 1) <= MAX_EVERY_CUT:
        return {
            bounds: "exhaustive"
            for bounds in every_slicing(seq_len, granularity)
            if len(bounds) - 1 in num_slices
        }
    for count in num_slices:
        uniform = uniform_slices(seq_len, count, granularity=granularity)
        if "uniform" in cuts:
            found.setdefault(uniform, "uniform")
        if count == 1 or not {"equal_cost", "between"} & set(cuts):
            continue
        equal = equal_cut(cost, seq_len, count, granularity)
        if "equal_cost" in cuts:
            found.setdefault(equal, "equal_cost")
        if "between" in cuts:
            middle = [
                (a + b) // 2 // granularity * granularity
                for a, b in zip(uniform, equal, strict=True)
            ]
            found.setdefault((*middle[:-1], seq_len), "between")
    if "least_makespan" in cuts:
        coarse = granularity * -(-num_cells // MAX_CELLS)
        best = slice_tokens(
            cost,
            seq_len,
            num_ranks,
            num_sequences=num_sequences,
            granularity=coarse,
            max_cells=MAX_CELLS,
        )
        if best.num_slices <= max(num_slices):
            found.setdefault(best.bounds, "least_makespan")
    return found


def equal_cut(
    cost: CostSurface, seq_len: int, num_slices: int, granularity: int
) -> tuple[int, ...]:
    """Bounds of the slicing whose costliest slice is cheapest, to about a thousandth of it.

    Slices as long as a limit on their cost allows, the limit found by bisection.
    ``equal_cost_slices`` is exact, and for any cost, but takes longer.
    """
    best = uniform_slices(seq_len, num_slices, granularity=granularity)
    high = max(float(cost(b - a, a)) for a, b in itertools.pairwise(best))
    low = 0.0
    while high - low > 1e-4 * high:
        limit = (low + high) / 2
        bounds = _up_to(cost, seq_len, num_slices, granularity, limit)
        if bounds is None:
            low = limit
        else:
            best, high = bounds, limit
    return best


def _up_to(
    cost: CostSurface, seq_len: int, num_slices: int, granularity: int, limit: float
) -> tuple[int, ...] | None:
    """Bounds of the longest slices that cost no more than ``limit``; None where they do not get
    to the end."""
    start, bounds = 0, [0]
    for left in range(num_slices - 1, -1, -1):
        # the slices that are left get a cell each, at least
        cells = -(-(seq_len - start) // granularity) - left
        few, many = 0, cells
        while few < many:
            middle = (few + many + 1) // 2
            num_tokens = min(seq_len - start, middle * granularity)
            few, many = (middle, many) if cost(num_tokens, start) <= limit else (few, middle - 1)
        if few == 0:
            return None
        start = min(seq_len, start + few * granularity)
        bounds.append(start)
    return tuple(bounds) if start == seq_len else None


def every_slicing(seq_len: int, granularity: int) -> Iterator[tuple[int, ...]]:
    """All bounds on a grid.

    >>> list(every_slicing(5, 2))[:3]
    [(0, 5), (0, 2, 5), (0, 4, 5)]
    """
    inner = range(granularity, seq_len, granularity)
    for chosen in range(2 ** len(inner)):
        yield (0, *(x for i, x in enumerate(inner) if chosen >> i & 1), seq_len)
