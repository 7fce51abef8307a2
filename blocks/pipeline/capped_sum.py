"""Cutting a row of items into contiguous parts: least sum of part costs under a cap on each.

The inner program of slicing sequences (Li et al. 2021, equations 7 and 8) and of giving layers to
stages. A part from boundary ``i`` to boundary ``j`` costs ``table[i, j]``; infinity forbids it.
Needs numpy, no torch.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple


class Partition(NamedTuple):
    """Contiguous parts.

    bounds: indices of the boundaries used, the first and the last included.
    total, largest: sum and maximum of the costs of the parts.
    """

    bounds: tuple[int, ...]
    total: float
    largest: float


def capped_sums(table: Any, caps: Any) -> list[Partition | None]:
    """For every cap the partition into any number of parts with the least sum of costs.

    Args:
        table: float64 ``[num_boundaries, num_boundaries]``; only ``j > i`` is read.
        caps: highest cost of one part, several at once: they share the passes over the table.

    Returns:
        a partition per cap, or None where no partition keeps to it. Among equal sums the one whose
        last part is longest, and so on forward.
    """
    import numpy as np

    costs = np.ascontiguousarray(table.T)  # costs[j, i]: what a step of the program reads is a row
    limits = np.asarray(caps, float)[:, None]
    num_caps, num_boundaries = len(limits), len(costs)
    allowed = costs <= limits.max()
    lowest = allowed.argmax(axis=1)  # parts that start before it cost too much for every cap
    sums = np.full((num_caps, num_boundaries), np.inf)
    sums[:, 0] = 0.0
    starts = np.zeros((num_caps, num_boundaries), np.int64)
    every = np.arange(num_caps)
    for j in range(1, num_boundaries):
        low = lowest[j]
        row = costs[j, low:j]
        found = np.where(row <= limits, row, np.inf)
        found += sums[:, low:j]
        chosen = found.argmin(axis=1) if low < j else None
        if chosen is not None:
            sums[:, j] = found[every, chosen]
            starts[:, j] = chosen + low
    return [
        _trace(starts[k], num_boundaries - 1, table, float(sums[k, -1])) for k in range(num_caps)
    ]


def _trace(starts: Any, last: int, table: Any, total: float) -> Partition | None:
    if total == float("inf"):
        return None
    bounds = [last]
    while bounds[-1] > 0:
        bounds.append(int(starts[bounds[-1]]))
    bounds.reverse()
    largest = max((float(table[i, j]) for i, j in itertools.pairwise(bounds)), default=0)
    return Partition(tuple(bounds), total, float(largest))


def capped_sums_of_parts(
    tables: Sequence[Any], caps: Any, *, ties: Any = None
) -> list[Partition | None]:
    """As ``capped_sums`` with as many parts as there are tables, part ``k`` priced by table ``k``.

    Tables may be one and the same object; parts hold at least one item. Among equal sums the one
    with the least sum of ``ties`` (a table for all parts), where given.
    """
    import numpy as np

    found: list[Partition | None] = []
    by_end = {id(table): np.ascontiguousarray(table.T) for table in tables}
    every = np.arange(len(tables[0]))
    for cap in np.asarray(caps, float):
        capped = {key: np.where(costs <= cap, costs, np.inf) for key, costs in by_end.items()}
        sums = np.full(len(every), np.inf)
        sums[0] = 0.0
        second = np.zeros(len(every))
        starts = []
        for table in tables:
            reached = capped[id(table)] + sums
            if ties is None:
                starts.append(reached.argmin(axis=1))
            else:
                equal = reached == reached.min(axis=1, keepdims=True)
                tied = np.where(equal, ties.T + second, np.inf)
                starts.append(tied.argmin(axis=1))
                second = tied[every, starts[-1]]
            sums = reached[every, starts[-1]]
        found.append(_trace_parts(starts, tables, float(sums[-1])))
    return found


def least_largest(tables: Sequence[Any]) -> Partition | None:
    """The partition into ``len(tables)`` parts whose costliest part is cheapest.

    Returns:
        None where there is none. Its total is not minimised: cap ``capped_sums_of_parts`` at its
        largest for that.
    """
    import numpy as np

    by_end = {id(table): np.ascontiguousarray(table.T) for table in tables}
    every = np.arange(len(tables[0]))
    worst = np.full(len(every), np.inf)
    worst[0] = -np.inf
    starts = []
    for table in tables:
        reached = np.maximum(by_end[id(table)], worst)
        starts.append(reached.argmin(axis=1))
        worst = reached[every, starts[-1]]
    return _trace_parts(starts, tables, float(worst[-1]))


def _trace_parts(starts: list[Any], tables: Sequence[Any], reached: float) -> Partition | None:
    if reached == float("inf"):
        return None
    bounds = [len(tables[0]) - 1]
    for start in reversed(starts):
        bounds.append(int(start[bounds[-1]]))
    bounds.reverse()
    costs = [float(t[i, j]) for t, i, j in zip(tables, bounds, bounds[1:], strict=False)]
    return Partition(tuple(bounds), sum(costs), max(costs))
