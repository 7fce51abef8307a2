"""``elimination_order``: in which variables had better be eliminated. Needs numpy."""

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

MAX_ENTRIES = 2**22
"""Entries of the largest table that ``eliminate`` builds."""


def elimination_order(
    num_labels: Sequence[int],
    groups: Iterable[tuple[int, ...]],
    max_entries: int | float = MAX_ENTRIES,
) -> tuple[tuple[int, ...], float]:
    """Variables, those that bring the fewest others together first, until tables are too large.

    Of equals, those go first whose neighbours have been touched least: chains of equal blocks then
    halve again and again, and equal halves are worked out once.

    Args:
        groups: variables that are in a term together.

    Returns:
        The order, and the entries of the largest table on the way.
    """
    weights = [float(np.log2(count)) for count in num_labels]
    near: list[set[int]] = [set() for _ in num_labels]
    for group in groups:
        for v in group:
            near[v].update(group)
    for v, others in enumerate(near):
        others.discard(v)
    limit = float(np.log2(max_entries)) + 1e-9
    left = [True] * len(weights)
    level = [0] * len(weights)

    def entry(v: int) -> tuple[float, float, int, int]:
        size = weights[v] + sum(weights[u] for u in near[v])
        return _new_pairs(near, weights, v), size, level[v], v

    entries = [entry(v) for v in range(len(weights))]
    queue = [one for one in entries if one[1] <= limit]
    heapq.heapify(queue)
    order: list[int] = []
    largest = 0.0
    while queue:
        now = heapq.heappop(queue)
        v = now[-1]
        if not left[v] or now != entries[v]:
            continue
        order.append(v)
        left[v], largest = False, max(largest, now[1])
        touched = set(near[v])
        for u in near[v]:
            near[u] |= near[v]
            near[u] -= {u, v}
            level[u] = max(level[u], level[v] + 1)
            if now[0]:
                touched |= near[u]
        for u in touched:
            entries[u] = entry(u)
            if entries[u][1] <= limit:
                heapq.heappush(queue, entries[u])
    return tuple(order), 2.0**largest


class Cliques(NamedTuple):
    """An order of elimination, and how large its tables are for any number of labels.

    order: all variables.
    members: those of every table, one table after the other, as long as ``starts`` says.
    """

    order: tuple[int, ...]
    members: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]

    @classmethod
    def of(cls, num_labels: Sequence[int], groups: Sequence[tuple[int, ...]]) -> "Cliques":
        """The order of ``elimination_order`` without a limit."""
        order, _ = elimination_order(num_labels, groups, np.inf)
        near: list[set[int]] = [{v} for v in range(len(num_labels))]
        for group in groups:
            for v in group:
                near[v].update(group)
        members: list[int] = []
        starts = []
        for v in order:
            starts.append(len(members))
            members += near[v]
            for u in near[v] - {v}:
                near[u] |= near[v]
                near[u].discard(v)
        return cls(order, np.array(members, dtype=np.intp), np.array(starts, dtype=np.intp))

    def largest(self, num_labels: Sequence[int]) -> float:
        """Entries of the largest table."""
        sizes = np.add.reduceat(np.log2(np.array(num_labels))[self.members], self.starts)
        return float(2.0 ** sizes.max())


def _new_pairs(near: Sequence[set[int]], weights: Sequence[float], v: int) -> float:
    """How much a variable's neighbours would have to become neighbours of one another."""
    others = list(near[v])
    total = 0.0
    for at, u in enumerate(others):
        for w in others[at + 1 :]:
            if w not in near[u]:
                total += weights[u] * weights[w]
    return total
