"""``improve``: a choice of labels made better by solving large parts of its neighbourhood.

Needs numpy.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.contract import given_others
from blocks.sharding.intra_op.eliminate import Cliques, TableCache, eliminate
from blocks.sharding.intra_op.problem import Problem, Table, Term

MAX_TURNS = 40

Labels = npt.NDArray[np.intp]


class Parts:
    """Parts of one problem: some labels of every variable. Equal parts of equal tables are one
    array.

    Invariant: every array that a key names by its address is held.
    """

    def __init__(self, cache: TableCache, max_entries: int | float) -> None:
        self.cache, self.max_entries = cache, max_entries
        self.cliques: Cliques | None = None
        self._cut: dict[tuple, Table] = {}
        self._held: dict[int, Table] = {}

    def check_invariants(self) -> None:
        assert all(key[0] in self._held for key in self._cut)

    def solve(self, problem: Problem, keep: Sequence[Labels]) -> list[int] | None:
        """The best choice among the labels kept; None where tables would be too large."""
        counts = [len(labels) for labels in keep]
        if self.cliques is None:
            self.cliques = Cliques.of(counts, [term.variables for term in problem.terms])
        if self.cliques.largest(counts) > self.max_entries:
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
                self._cut[key] = np.asarray(table[keep[v]])
            seconds.append(self._cut[key])
        part = Problem(tuple(seconds), tuple(terms))
        done = eliminate(
            part, max_entries=self.max_entries, cache=self.cache, order=self.cliques.order
        )
        found = done.complete([0] * len(counts))
        return [int(labels[at]) for labels, at in zip(keep, found, strict=True)]

    def gain(self, table: Table, axis: int, keep: Sequence[Labels]) -> Table:
        """Which labels of a copy make anything quicker than label 0, as 0 and 1."""
        others = tuple(k.tobytes() for at, k in enumerate(keep) if at != axis)
        key = (id(table), "gain", axis, others)
        if key not in self._cut:
            self._held[id(table)] = table
            every = [np.arange(table.shape[axis]) if at == axis else k for at, k in enumerate(keep)]
            part = np.moveaxis(table[np.ix_(*every)], axis, 0)
            faster = (part < part[:1]).reshape(len(part), -1).any(axis=1)
            self._cut[key] = np.asarray(faster, dtype=np.float64)
        return self._cut[key]


def improve(
    problem: Problem,
    labels: Sequence[int] | None,
    choices: Sequence[npt.NDArray[np.int64]],
    cache: TableCache,
    max_entries: int | float,
) -> tuple[int, ...]:
    """A choice that no small change betters, exactly over exponentially many changes at a time.

    A part of the problem has a few labels of every variable: the present one, and either those
    that differ from it on one mesh axis alone, or any; those first that would cost least if
    nothing else changed. Parts are solved by elimination, in turn, until none helps.

    Args:
        labels: where to begin; None to begin with each axis for itself.
        choices: for the first variables what their labels do on every mesh axis.
        max_entries: of the largest table of a part.

    Reference:
        Shaw, "Using constraint programming and local search methods to solve vehicle routing
        problems", 1998 (large neighbourhoods).
    """
    search = _Improving(problem, choices, Parts(cache, max_entries))
    best, least = None, np.inf
    for begin in [list(labels)] if labels is not None else search.begin():
        chosen, value = search.descend(begin)
        if value < least or best is None:
            best, least = chosen, value
    assert best is not None
    return tuple(best)


class _Improving:
    def __init__(
        self, problem: Problem, choices: Sequence[npt.NDArray[np.int64]], parts: Parts
    ) -> None:
        self.problem, self.parts, self.choices = problem, parts, choices
        self.num_axes = choices[0].shape[1] if choices else 0

    def descend(self, chosen: list[int]) -> tuple[list[int], float]:
        least = self.problem.value(chosen)
        turns = [*range(self.num_axes), -1] if self.num_axes > 1 else [-1]
        idle = 0
        for turn in range(MAX_TURNS):
            found = self._part(chosen, turns[turn % len(turns)])
            idle += 1
            if (value := self.problem.value(found)) < least * (1 - 1e-9):
                chosen, least, idle = found, value, 0
            if idle == len(turns):
                break
        return chosen, least

    def begin(self) -> list[list[int]]:
        """Every axis for itself, the others cutting nothing; or label by label."""
        greedy = [int(np.argmin(seconds)) for seconds in self.problem.seconds]
        found = []
        for axis in range(self.num_axes):
            keep = [np.arange(min(2, count)) for count in self.problem.num_labels]
            for v, own in enumerate(self.choices):
                others = np.delete(own, axis, axis=1)
                flags = (others == -1).all(axis=1)
                if not flags.any():  # pinned, or not allowed
                    flags = (others == others[greedy[v]]).all(axis=1)
                keep[v] = np.flatnonzero(flags)
            solved = self.parts.solve(self.problem, self._gaining(keep))
            if solved is not None:
                found.append(solved)
        return found or [greedy]

    def _part(self, chosen: list[int], axis: int) -> list[int]:
        """The best of a part: of labels that differ on one axis, or on any (-1)."""
        ranked = []
        for v, costs in enumerate(given_others(self.problem, chosen)):
            order = np.argsort(costs, kind="stable")
            if axis >= 0 and v < len(self.choices):
                others = np.delete(self.choices[v], axis, axis=1)
                order = order[(others[order] == others[chosen[v]]).all(axis=1)]
            ranked.append(order[order != chosen[v]])
        few = len(self.choices)
        for most in (15, 11, 8, 6, 4, 3, 2):
            keep = [
                np.sort(np.append(r[: most if v < few else min(most, 2)], chosen[v]))
                for v, r in enumerate(ranked)
            ]
            if axis >= 0:
                keep = self._gaining(keep)
            found = self.parts.solve(self.problem, keep)
            if found is not None:
                return found
        return chosen

    def _gaining(self, keep: list[Labels]) -> list[Labels]:
        """With all labels of the copies that two readers or more could gain by."""
        first, found = len(self.choices), list(keep)
        gains: dict[int, Any] = {}
        for variables, table in self.problem.terms:
            copies = [axis for axis, v in enumerate(variables) if v >= first]
            if not copies or len(variables) < 2:
                continue
            v, axis = variables[copies[0]], copies[0]
            gain = self.parts.gain(table, axis, [keep[u] for u in variables])
            gains[v] = gains.get(v, 0) + gain
        for v, gain in gains.items():
            found[v] = np.append(0, np.flatnonzero(gain > 1))
        return found
