"""``least_labels``: strategies for a mesh of several axes, one axis at a time. Needs numpy.

On two axes an operation has as many strategies as the squares of those on one, and a table over
four of them is too large to be searched through for every mesh and every price of memory. With all
axes but one held as they are, what is left is a problem of one axis, which is solved exactly.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op import Posed, Problem, Term, minimise

TOLERANCE = 1e-5
"""Share of the costs that is not worth another turn."""

Indices = npt.NDArray[np.intp]


class AxisDescent:
    """The choice of strategies of one graph, for prices of memory that change.

    Invariant: ``restricted`` holds the arrays whose addresses are its keys.

    Args:
        posed: the graph on its mesh.
    """

    def __init__(self, posed: Posed) -> None:
        self.posed = posed
        self.choices = [
            np.array([s.choices for s in node.strategies], dtype=np.intp) for node in posed.labels
        ]
        self.num_axes = self.choices[0].shape[1]
        self._restricted: dict[tuple, tuple[Any, Any]] = {}

    def least(
        self, problem: Problem, starts: Sequence[Sequence[int]] = ()
    ) -> tuple[tuple[int, ...], float]:
        """Labels that no change of one axis alone makes better, and their value.

        With one axis they are the best there are.

        Args:
            problem: the posed one, its costs changed at will.
            starts: labels to set out from; by default those that replicate everything.
        """
        if self.num_axes == 1:
            found = minimise(problem)
            return found.labels, found.seconds
        every = list(map(tuple, starts)) or [tuple(0 for _ in problem.seconds)]
        ends = [self._descend(problem, list(start)) for start in every]
        return min(ends, key=lambda end: end[1])

    def settled(self, problem: Problem, labels: Sequence[int]) -> tuple[int, ...]:
        """Labels as good as these or better, looked for along all axes together."""
        if self.num_axes == 1:
            return tuple(labels)
        found = minimise(problem, hints=self.posed.hints, start=list(labels), sweeps=0)
        return min(tuple(labels), found.labels, key=problem.value)

    def _descend(self, problem: Problem, labels: list[int]) -> tuple[tuple[int, ...], float]:
        best, axis = problem.value(labels), 0
        still = -1  # an axis that was solved last stays best while no other moves
        self._restricted.clear()  # of another problem
        while still < self.num_axes - 1:
            left = self._left(labels, axis, len(problem.seconds))
            found = minimise(self._restrict(problem, left)).labels
            labels = [at if k is None else int(k[at]) for k, at in zip(left, found, strict=True)]
            value = problem.value(labels)
            still = still + 1 if value > best * (1 - TOLERANCE) else min(still + 1, 0)
            best, axis = min(best, value), (axis + 1) % self.num_axes
        return tuple(labels), best

    def nearest(self, choices: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Labels with these choices where nodes have them, else those that replicate."""
        labels = [0] * len(self.posed.problem.seconds)
        for v, wanted in enumerate(choices):
            same = np.flatnonzero((self.choices[v] == np.asarray(wanted)).all(axis=1))
            labels[v] = int(same[0]) if len(same) else 0
        return tuple(labels)

    def _left(self, labels: Sequence[int], axis: int, count: int) -> list[Indices | None]:
        """For every variable the labels that differ from its own along one axis at most."""
        left: list[Indices | None] = [None] * count
        for v, choices in enumerate(self.choices):
            same = choices == choices[labels[v]]
            same[:, axis] = True
            left[v] = np.flatnonzero(same.all(axis=1))
        return left

    def _restrict(self, problem: Problem, left: Sequence[Indices | None]) -> Problem:
        """Equal arrays stay one array."""
        seconds = [self._cut(s, (keep,)) for s, keep in zip(problem.seconds, left, strict=True)]
        terms = [
            Term(variables, self._cut(table, tuple(left[v] for v in variables)))
            for variables, table in problem.terms
        ]
        return Problem(tuple(seconds), tuple(terms))

    def _cut(self, table: Any, left: tuple[Indices | None, ...]) -> Any:
        if all(keep is None for keep in left):
            return table
        key = (id(table), *(None if keep is None else keep.tobytes() for keep in left))
        if key not in self._restricted:
            every = [
                np.arange(size) if keep is None else keep
                for size, keep in zip(table.shape, left, strict=True)
            ]
            self._restricted[key] = table, np.ascontiguousarray(table[np.ix_(*every)])
        return self._restricted[key][1]
