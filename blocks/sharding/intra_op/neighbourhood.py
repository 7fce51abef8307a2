"""``improve``: a choice of labels made better by solving large parts of its neighbourhood.

Needs numpy.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.eliminate import TableCache, eliminate, elimination_order
from blocks.sharding.intra_op.hints import Hints
from blocks.sharding.intra_op.problem import Problem, Table, Term

PART_ENTRIES = 2**18
"""Entries of the largest table of a part."""

MAX_TURNS = 40

Labels = npt.NDArray[np.intp]


class Parts:
    """Problems of some labels of every variable. Equal parts of equal tables are one array.

    Invariant: every array that a key names by its address is held.
    """

    def __init__(self, cache: TableCache) -> None:
        self.cache = cache
        self._cut: dict[tuple, Table] = {}
        self._held: dict[int, Table] = {}

    def check_invariants(self) -> None:
        assert all(key[0] in self._held for key in self._cut)

    def solve(self, problem: Problem, keep: Sequence[Labels]) -> list[int] | None:
        """The best choice among the labels kept; None where tables would be too large."""
        counts = [len(labels) for labels in keep]
        groups = [tuple(v for v in t.variables if counts[v] > 1) for t in problem.terms]
        order, _ = elimination_order(counts, groups, PART_ENTRIES)
        if len(order) < len(counts):
            return None
        names = [labels.tobytes() for labels in keep]
        terms = []
        for variables, table in problem.terms:
            key = (id(table), *(names[v] for v in variables))
            if key not in self._cut:
                self._held[id(table)] = table
                self._cut[key] = table[np.ix_(*(keep[v] for v in variables))]
            terms.append(Term(variables, self._cut[key]))
        seconds = []
        for v, table in enumerate(problem.seconds):
            key = (id(table), names[v])
            if key not in self._cut:
                self._held[id(table)] = table
                self._cut[key] = table[keep[v]]
            seconds.append(self._cut[key])
        part = Problem(tuple(seconds), tuple(terms))
        done = eliminate(part, max_entries=PART_ENTRIES, cache=self.cache, order=order)
        found = done.complete([0] * len(counts))
        return [int(labels[at]) for labels, at in zip(keep, found, strict=True)]

    def scaled(self, table: Table, share: int) -> Table:
        """A table without its copy's axis, as if there were none, divided."""
        key = (id(table), share)
        if key not in self._cut:
            self._held[id(table)] = table
            self._cut[key] = table[:, 0, :] / share
        return self._cut[key]


def improve(
    problem: Problem, labels: Sequence[int] | None, hints: Hints | None, cache: TableCache
) -> tuple[int, ...]:
    """A choice that no small change betters, exactly over exponentially many changes at a time.

    A part of the problem has a few labels of every variable: the present one, and either those
    that differ from it on one mesh axis alone, or those that would cost least if nothing else
    changed. Parts are solved by elimination, in turn, until none helps. Where copies are shared,
    parts are first posed without them, each reader paying its share of a resharding as many share
    now: they can move together then.

    Args:
        labels: where to begin; None to begin from nothing.

    Reference:
        Shaw, "Using constraint programming and local search methods to solve vehicle routing
        problems", 1998 (large neighbourhoods).
    """
    search = _Improving(problem, hints, Parts(cache))
    return search.run(labels)


class _Improving:
    def __init__(self, problem: Problem, hints: Hints | None, parts: Parts) -> None:
        self.problem, self.parts = problem, parts
        self.hints = hints or Hints((), ())
        self.of = _terms_of(problem)
        choices = self.hints.choices
        self.num_axes = choices[0].shape[1] if choices else 0

    def run(self, labels: Sequence[int] | None) -> tuple[int, ...]:
        begins = [list(labels)] if labels is not None else self._begin()
        best, least = begins[0], np.inf
        for begin in begins:
            chosen, value = self._descend(begin)
            if value < least:
                best, least = chosen, value
        return tuple(best)

    def _descend(self, chosen: list[int]) -> tuple[list[int], float]:
        least = self.problem.value(chosen)
        turns = [*range(self.num_axes), -1] if self.num_axes > 1 else []
        if self.hints.copies or not turns:
            turns.append(-2)
        idle = 0
        for turn in range(MAX_TURNS):
            kind = turns[turn % len(turns)]
            found = self._exact(chosen) if kind == -2 else self._together(chosen, kind)
            idle += 1
            if found is not None and (value := self.problem.value(found)) < least * (1 - 1e-9):
                chosen, least, idle = found, value, 0
            if idle == len(turns):
                break
        return chosen, least

    def _begin(self) -> list[list[int]]:
        """Every axis for itself, the others cutting nothing; or label by label."""
        greedy = [int(np.argmin(seconds)) for seconds in self.problem.seconds]
        found = []
        for axis in range(self.num_axes):
            keep = [np.zeros(1, dtype=np.intp) for _ in greedy]
            for v, own in enumerate(self.hints.choices):
                others = np.delete(own, axis, axis=1)
                flags = (others == -1).all(axis=1)
                if not flags.any():  # pinned, or not allowed
                    flags = (others == others[greedy[v]]).all(axis=1)
                keep[v] = np.flatnonzero(flags)
            part = self._alone([len(copy.readers) for copy in self.hints.copies])
            solved = self.parts.solve(part, keep)
            if solved is not None:
                found.append(self._with_copies(solved))
        return found or [self._with_copies(greedy)]

    def _together(self, chosen: list[int], axis: int) -> list[int] | None:
        """Copies left out: labels that differ on one axis, or on any (-1)."""
        shares: list[list[int]] = []
        for copy in self.hints.copies:
            now = [int(w[chosen[r]]) for r, w in zip(copy.readers, copy.wants, strict=True)]
            shares.append([now.count(code) for code in now])
        part = self._alone(shares)
        ranked = []
        for v, costs in enumerate(_given(part, _terms_of(part), chosen)):
            order = np.argsort(costs, kind="stable")
            if axis >= 0 and v < len(self.hints.choices):
                others = np.delete(self.hints.choices[v], axis, axis=1)
                order = order[(others[order] == others[chosen[v]]).all(axis=1)]
            copied = v >= len(self.hints.choices)
            ranked.append(order[:0] if copied else order[order != chosen[v]])
        found = self._largest(part, chosen, ranked, (9, 7, 5, 4, 3, 2, 1))
        return None if found is None else self._with_copies(found)

    def _exact(self, chosen: list[int]) -> list[int] | None:
        """The problem as it is, with the few labels that cost least given the others."""
        given = _given(self.problem, self.of, chosen)
        ranked = [np.argsort(costs, kind="stable") for costs in given]
        ranked = [order[order != now] for order, now in zip(ranked, chosen, strict=True)]
        return self._largest(self.problem, chosen, ranked, (3, 2, 1))

    def _largest(
        self, part: Problem, chosen: list[int], ranked: list[Labels], sizes: tuple[int, ...]
    ) -> list[int] | None:
        for most in sizes:
            keep = [np.sort(np.append(r[:most], c)) for r, c in zip(ranked, chosen, strict=True)]
            found = self.parts.solve(part, keep)
            if found is not None:
                return found
        return None

    def _alone(self, shares: Sequence[int | list[int]]) -> Problem:
        """The problem without copies, readers paying a share of what they read."""
        left_out = {copy.variable for copy in self.hints.copies}
        terms = [t for t in self.problem.terms if not left_out.intersection(t.variables)]
        for copy, share in zip(self.hints.copies, shares, strict=True):
            for at in range(len(copy.readers)):
                (maker, _, reader), table = self.problem.terms[copy.first_term + at]
                each = share if isinstance(share, int) else share[at]
                terms.append(Term((maker, reader), self.parts.scaled(table, each)))
        return Problem(self.problem.seconds, tuple(terms))

    def _with_copies(self, labels: list[int]) -> list[int]:
        """The best copies, the nodes labelled as given."""
        found = list(labels)
        for copy in self.hints.copies:
            v = copy.variable
            total = self.problem.seconds[v]
            for variables, table in self.of[v]:
                total = total + table[tuple(slice(None) if u == v else found[u] for u in variables)]
            found[v] = int(np.argmin(total))
        return found


def _terms_of(problem: Problem) -> list[list[Term]]:
    found: list[list[Term]] = [[] for _ in problem.seconds]
    for term in problem.terms:
        for v in term.variables:
            found[v].append(term)
    return found


def _given(problem: Problem, of: list[list[Term]], labels: Sequence[int]) -> list[Table]:
    """Seconds of every label of each variable, all others labelled as given."""
    found = []
    for v, terms in enumerate(of):
        total = problem.seconds[v]
        for variables, table in terms:
            total = total + table[tuple(slice(None) if u == v else labels[u] for u in variables)]
        found.append(total)
    return found
