"""``contract``: a problem in which variables follow others, each label of which brings theirs.

Needs numpy.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.hints import Hints
from blocks.sharding.intra_op.problem import Problem, Table, Term

Labels = npt.NDArray[np.intp]


class Contracted(NamedTuple):
    """A smaller problem.

    problem: of the variables that follow none, in their order.
    choices: for the first of them what their labels do on every mesh axis.
    kept: which variables of the whole problem they are.
    roots: for every variable of the whole problem the one of the smaller it goes by.
    brings: for every variable of the whole problem its label by the label of that one.
    """

    problem: Problem
    choices: tuple[npt.NDArray[np.int64], ...]
    kept: tuple[int, ...]
    roots: tuple[int, ...]
    brings: tuple[Labels, ...]

    def reduce(self, labels: Sequence[int]) -> list[int]:
        """Labels of the smaller problem, where those of the whole are ones it has."""
        return [labels[v] for v in self.kept]

    def expand(self, labels: Sequence[int]) -> list[int]:
        """Labels of the whole problem."""
        pairs = zip(self.roots, self.brings, strict=True)
        return [int(brought[labels[root]]) for root, brought in pairs]


def contract(problem: Problem, hints: Hints, around: Sequence[int] | None = None) -> Contracted:
    """Followers take the label that is cheapest to come to from each label of whom they follow.

    Any choice of the smaller problem is one of the whole, at the same cost; not the other way
    round.

    Args:
        around: a choice, which stays one of the smaller problem; followers then count in what
            else they are next to, labelled so.
    """
    count = len(problem.seconds)
    beside = given_others(problem, around) if around is not None else list(problem.seconds)
    roots = list(range(count))
    brings: list[Labels] = [np.arange(n) for n in problem.num_labels]
    steps: dict[tuple, Labels] = {}
    for v, at in enumerate(hints.leads):
        if at < 0:
            continue
        variables, table = problem.terms[at]
        lead, none = variables[0], 0
        own = beside[v]
        now = (-1, -1)
        if around is not None:
            now = (around[lead], around[v])
            none = around[variables[1]] if table.ndim == 3 else 0
            read = table[:, none, :] if table.ndim == 3 else table
            own = own - read[around[lead]]
        key = (id(table), none, own.tobytes(), now)
        if key not in steps:
            reading = table[:, none, :] if table.ndim == 3 else table
            steps[key] = np.argmin(reading + own, axis=1)
            if around is not None:
                steps[key][around[lead]] = around[v]
        roots[v] = roots[lead]
        brings[v] = steps[key][brings[lead]]
    return _contracted(problem, hints, roots, brings)


def _contracted(
    problem: Problem, hints: Hints, roots: list[int], brings: list[Labels]
) -> Contracted:
    members: dict[int, list[int]] = {}
    for v, root in enumerate(roots):
        members.setdefault(root, []).append(v)
    kept = sorted(members)
    number = {v: at for at, v in enumerate(kept)}
    tables = _Tables(problem, brings)
    alone: list[list[Table]] = [[tables.sum(members[root])] for root in kept]
    terms = []
    for variables, table in problem.terms:
        by = [number[roots[v]] for v in variables]
        over = tuple(dict.fromkeys(by))
        made = tables.over(variables, table, by, over)
        if len(over) == 1:
            alone[over[0]].append(made)
        else:
            terms.append(Term(over, made))
    small = Problem(tuple(map(tables.add, alone)), tuple(terms))
    choices = tuple(hints.choices[v] for v in kept if v < len(hints.choices))
    return Contracted(
        small, choices, tuple(kept), tuple(number[root] for root in roots), tuple(brings)
    )


def given_others(problem: Problem, labels: Sequence[int]) -> list[Table]:
    """Seconds of every label of each variable, all others labelled as given."""
    found = list(problem.seconds)
    for variables, table in problem.terms:
        for v in variables:
            at = tuple(slice(None) if u == v else labels[u] for u in variables)
            found[v] = found[v] + table[at]
    return found


class _Tables:
    """Equal tables are one array."""

    def __init__(self, problem: Problem, brings: list[Labels]) -> None:
        self.problem, self.brings = problem, brings
        self.names = [b.tobytes() for b in brings]
        self.made: dict[tuple, Table] = {}
        self.held: list[Table] = []

    def sum(self, members: list[int]) -> Table:
        key = tuple((id(self.problem.seconds[v]), self.names[v]) for v in members)
        if key not in self.made:
            self.made[key] = sum(
                (self.problem.seconds[v][self.brings[v]] for v in members[1:]),
                self.problem.seconds[members[0]][self.brings[members[0]]],
            )
        return self.made[key]

    def add(self, tables: list[Table]) -> Table:
        if len(tables) == 1:
            return tables[0]
        key = tuple(map(id, tables))
        if key not in self.made:
            self.held += tables
            self.made[key] = sum(tables[1:], tables[0])
        return self.made[key]

    def over(
        self, variables: tuple[int, ...], table: Table, goes_by: list[int], over: tuple[int, ...]
    ) -> Table:
        axes = tuple(over.index(root) for root in goes_by)
        key = (id(table), axes, *(self.names[v] for v in variables))
        if key not in self.made:
            index = []
            for v, axis in zip(variables, axes, strict=True):
                spread = [1] * len(over)
                spread[axis] = -1
                index.append(self.brings[v].reshape(spread))
            self.made[key] = table[tuple(index)]
        return self.made[key]
