"""``eliminate``: the least sum of tables, one variable at a time; exact. Needs numpy."""

import heapq
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.problem import Problem, Table, Term

MAX_ENTRIES = 2**22
"""Entries of the largest table that ``eliminate`` builds."""


class Bucket(NamedTuple):
    """A variable that has been eliminated, and the terms it was in.

    Given the others in them, which are eliminated later, its best label is one look-up.
    """

    variable: int
    terms: tuple[Term, ...]

    def costs(self, labels: Sequence[int]) -> Table:
        """Seconds of every label of the variable, the others labelled as given."""
        total = np.zeros(())
        for variables, seconds in self.terms:
            at = tuple(slice(None) if v == self.variable else labels[v] for v in variables)
            total = total + seconds[at]
        return total


class Elimination(NamedTuple):
    """What is left after variables were eliminated.

    buckets: those eliminated, in order.
    terms: over the variables that are left.
    seconds: what has been settled; the least of the whole is that of ``terms`` beside it.
    """

    buckets: tuple[Bucket, ...]
    terms: tuple[Term, ...]
    seconds: float

    def complete(self, labels: list[int]) -> list[int]:
        """Fill in the best labels of the eliminated variables, those left being in place."""
        for bucket in reversed(self.buckets):
            labels[bucket.variable] = int(np.argmin(bucket.costs(labels)))
        return labels


class TableCache:
    """Tables made of the same arrays in the same way are made once.

    Repeated blocks of a model have the same arrays, so all but the first cost next to nothing.

    Invariant: every array that a key names by its address is held by the cache.
    """

    def __init__(self) -> None:
        self._made: dict[tuple, Table] = {}
        self._squeezed: dict[tuple[int, tuple[int, ...]], Table] = {}
        self._held: dict[int, Table] = {}

    def least(self, variable: int, others: tuple[int, ...], terms: Sequence[Term]) -> Table:
        """Least over a variable of the sum of ``terms``, an axis for each of ``others``."""
        where = {v: at for at, v in enumerate((variable, *others))}
        key = tuple(sorted((id(t.seconds), tuple(where[v] for v in t.variables)) for t in terms))
        if key not in self._made:
            for term in terms:
                self._held[id(term.seconds)] = term.seconds
            self._made[key] = self._least(where, terms)
        return self._made[key]

    def without(self, term: Term, single: Sequence[bool]) -> Term:
        """A term without the variables that have one label only."""
        variables, seconds = term
        if not any(single[v] for v in variables):
            return term
        axes = tuple(axis for axis, v in enumerate(variables) if single[v])
        key = (id(seconds), axes)
        if key not in self._squeezed:
            self._held[id(seconds)] = seconds
            self._squeezed[key] = seconds.squeeze(axes)
        return Term(tuple(v for v in variables if not single[v]), self._squeezed[key])

    @property
    def num_tables(self) -> int:
        """Made so far."""
        return len(self._made)

    def check_invariants(self) -> None:
        for key in self._made:
            assert all(address in self._held for address, _ in key), key
        assert all(address in self._held for address, _ in self._squeezed)

    @staticmethod
    def _least(where: dict[int, int], terms: Sequence[Term]) -> Table:
        spread = []
        for variables, seconds in terms:
            order = sorted(range(len(variables)), key=lambda i: where[variables[i]])
            there = {where[v] for v in variables}
            index = tuple(slice(None) if at in there else None for at in range(len(where)))
            spread.append(seconds.transpose(order)[index])
        spread.sort(key=lambda table: table.size)
        shape = np.broadcast_shapes(*(table.shape for table in spread))
        if np.prod(shape) <= 2**15:
            total = spread[0]
            for table in spread[1:]:
                total = total + table
            return np.asarray(total.min(axis=0))
        least = np.full(shape[1:], np.inf)
        for label in range(shape[0]):  # a table without the variable, instead of one with it
            total = spread[0][min(label, len(spread[0]) - 1)]
            for table in spread[1:]:
                total = total + table[min(label, len(table) - 1)]
            np.minimum(least, total, out=least)
        return least


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


def eliminate(
    problem: Problem,
    *,
    max_entries: int | float = MAX_ENTRIES,
    cache: TableCache | None = None,
    order: Sequence[int] | None = None,
) -> Elimination:
    """Take out variables, those with the smallest tables first, while tables stay small.

    A variable goes by taking the least over its labels of the terms it is in: a new term over its
    neighbours, exact whatever they choose later. Series-parallel parts, chains and trees go
    altogether; what is left is where the graph is knotted.

    Args:
        max_entries: a variable whose table, itself included, had more is left.
        cache: of tables made before, for other problems with the same arrays.
        order: in which to take them out; None for ``elimination_order``.

    Reference:
        Bertele and Brioschi, "Nonserial dynamic programming", 1972; Dechter, "Bucket
        elimination", 1999.
    """
    cache = cache or TableCache()
    single = [count == 1 for count in problem.num_labels]
    every = [cache.without(term, single) for term in problem.terms]
    settled = sum(float(term.seconds) for term in every if not term.variables)
    if order is None:
        order, _ = elimination_order(problem.num_labels, [t.variables for t in every], max_entries)
    in_terms: list[dict[int, Term]] = [
        {-1 - v: Term((v,), seconds)} for v, seconds in enumerate(problem.seconds)
    ]
    for number, term in enumerate(every):
        for v in term.variables:
            in_terms[v][number] = term
    number = len(every)
    buckets: list[Bucket] = []
    for v in order:
        taken = in_terms[v]
        terms = tuple(taken.values())
        others = tuple(sorted({u for term in terms for u in term.variables} - {v}))
        buckets.append(Bucket(v, terms))
        least = cache.least(v, others, terms)
        for u in others:
            for used in taken:
                in_terms[u].pop(used, None)
            in_terms[u][number] = Term(others, least)
        settled += 0.0 if others else float(least)
        in_terms[v] = {}
        number += 1
    left = {at: term for terms in in_terms for at, term in terms.items()}
    return Elimination(tuple(buckets), tuple(left[at] for at in sorted(left)), settled)
