"""``improve``: a choice of labels made better by solving many small parts of its neighbourhood.

Needs numpy.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.eliminate import TableCache, eliminate, elimination_order
from blocks.sharding.intra_op.problem import Problem, Table, Term

PART_ENTRIES = 2**18
"""Entries of the largest table of a part."""

START_ENTRIES = 2**22
MAX_MOVES = 24

Labels = npt.NDArray[np.intp]
Coordinates = Sequence[npt.NDArray[np.int64] | None]
"""For every variable what each label chooses on each mesh axis, a row a label; None where labels
have no such parts."""


class Parts:
    """Problems of some labels of every variable. Equal parts of equal tables are one array.

    Invariant: every array that a key names by its address is held.
    """

    def __init__(self, problem: Problem, cache: TableCache) -> None:
        self.problem, self.cache = problem, cache
        self._cut: dict[tuple, Table] = {}
        self._of: list[list[Term]] = [[] for _ in problem.seconds]
        for term in problem.terms:
            for v in term.variables:
                self._of[v].append(term)

    def solve(self, keep: Sequence[Labels], max_entries: int | float) -> list[int] | None:
        """The best choice among the labels kept; None where tables would be too large."""
        counts = [len(labels) for labels in keep]
        groups = [tuple(v for v in t.variables if counts[v] > 1) for t in self.problem.terms]
        order, _ = elimination_order(counts, groups, max_entries)
        if len(order) < len(counts):
            return None
        names = [labels.tobytes() for labels in keep]
        terms = []
        for variables, table in self.problem.terms:
            key = (id(table), *(names[v] for v in variables))
            if key not in self._cut:
                self._cut[key] = table[np.ix_(*(keep[v] for v in variables))]
            terms.append(Term(variables, self._cut[key]))
        seconds = []
        for v, table in enumerate(self.problem.seconds):
            key = (id(table), names[v])
            if key not in self._cut:
                self._cut[key] = table[keep[v]]
            seconds.append(self._cut[key])
        part = Problem(tuple(seconds), tuple(terms))
        done = eliminate(part, max_entries=max_entries, cache=self.cache, order=order)
        found = done.complete([0] * len(counts))
        return [int(labels[at]) for labels, at in zip(keep, found, strict=True)]

    def given(self, labels: Sequence[int]) -> list[Table]:
        """Seconds of every label of each variable, all others labelled as given."""
        found = []
        for v, terms in enumerate(self._of):
            total = self.problem.seconds[v]
            for variables, table in terms:
                at = tuple(slice(None) if u == v else labels[u] for u in variables)
                total = total + table[at]
            found.append(total)
        return found


def improve(
    problem: Problem,
    labels: Sequence[int] | None,
    coordinates: Coordinates | None,
    cache: TableCache,
) -> tuple[int, ...]:
    """A choice that no small change betters, exactly over exponentially many changes at a time.

    A part of the problem has a few labels of every variable: the present one, and either those
    that differ from it on one mesh axis alone, or those that would cost least if nothing else
    changed. Parts are solved by elimination, in turn, until none helps.

    Args:
        labels: where to begin; None to begin from nothing.
        coordinates: what labels choose on each axis.

    Reference:
        Shaw, "Using constraint programming and local search methods to solve vehicle routing
        problems", 1998 (large neighbourhoods).
    """
    parts = Parts(problem, cache)
    num_axes = next((len(c[0]) for c in coordinates or () if c is not None), 0)
    chosen = list(labels) if labels is not None else _start(parts, coordinates, num_axes)
    least = problem.value(chosen)
    moves: list[int | None] = [None, *range(num_axes)] if num_axes > 1 else [None]
    idle = 0
    for turn in range(MAX_MOVES):
        axis = moves[turn % len(moves)]
        found = _move(parts, chosen, coordinates, axis)
        value = problem.value(found) if found is not None else least
        idle += 1
        if found is not None and value < least * (1 - 1e-9):
            chosen, least, idle = found, value, 0
        if idle == len(moves):
            break
    return tuple(chosen)


def _start(parts: Parts, coordinates: Coordinates | None, num_axes: int) -> list[int]:
    """Each axis for itself, the others cutting nothing; the best of those, or label by label."""
    problem = parts.problem
    greedy = [int(np.argmin(seconds)) for seconds in problem.seconds]
    best, least = greedy, problem.value(greedy)
    for axis in range(num_axes if coordinates else 0):
        keep = []
        for v, count in enumerate(problem.num_labels):
            own = coordinates[v] if coordinates else None
            flags = np.ones(count, dtype=bool)
            if own is not None:
                others = np.delete(own, axis, axis=1)
                flags = (others == -1).all(axis=1)
                if not flags.any():  # pinned, or not allowed
                    flags = (others == others[int(np.argmin(problem.seconds[v]))]).all(axis=1)
            keep.append(np.flatnonzero(flags))
        found = parts.solve(_useful(problem, keep, coordinates), START_ENTRIES)
        if found is not None and (value := problem.value(found)) < least:
            best, least = found, value
    return best


def _move(
    parts: Parts, chosen: Sequence[int], coordinates: Coordinates | None, axis: int | None
) -> list[int] | None:
    given = parts.given(chosen)
    ranked = []
    for v, costs in enumerate(given):
        order = np.argsort(costs, kind="stable")
        own = coordinates[v] if coordinates else None
        if axis is not None and own is not None:
            others = np.delete(own, axis, axis=1)
            order = order[(others[order] == others[chosen[v]]).all(axis=1)]
        ranked.append(order[order != chosen[v]])
    for most in (6, 4, 3, 2, 1) if axis is not None else (3, 2, 1):
        keep = [np.sort(np.append(r[:most], c)) for r, c in zip(ranked, chosen, strict=True)]
        if axis is not None:
            keep = _useful(parts.problem, keep, coordinates)
        found = parts.solve(keep, PART_ENTRIES)
        if found is not None:
            return found
    return None


def _useful(problem: Problem, keep: list[Labels], coordinates: Coordinates | None) -> list[Labels]:
    """All labels of the shared copies that two readers or more could gain by, as things stand."""
    if coordinates is None:
        return keep
    gains: dict[int, Table] = {}
    for variables, table in problem.terms:
        if len(variables) == 3 and coordinates[variables[1]] is None:
            maker, copy, reader = variables
            part = table[np.ix_(keep[maker], np.arange(table.shape[1]), keep[reader])]
            gain = (part < part[:, :1]).any(axis=(0, 2))
            gains[copy] = gains.get(copy, np.zeros(table.shape[1])) + gain
    found = list(keep)
    for copy, gain in gains.items():
        found[copy] = np.append(0, np.flatnonzero(gain > 1))
    return found
