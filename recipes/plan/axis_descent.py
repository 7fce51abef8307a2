"""``AxisDescent``: strategies for a mesh of several axes, one axis at a time. Needs numpy.

On two axes an operation has as many strategies as the squares of those on one, and a table over
four of them is too large to be searched through for every mesh and every price of memory. With all
axes but one held as they are, what is left is a problem of one axis, which is solved exactly.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op import Posed, Problem, TableCache, Term, minimise
from blocks.sharding.intra_op.elimination_order import elimination_order
from blocks.sharding.intra_op.problem import Table

TOLERANCE = 1e-5
"""Share of the costs that is not worth another turn."""

SMALL_ENTRIES = 2**14
"""Of tables; a bound on what labels can come to is quicker than larger ones."""

SWEEPS = 3
"""Of the bound; what they leave is nearly always little enough to be searched through."""

Indices = npt.NDArray[np.intp]


class AxisDescent:
    """The choice of strategies of one graph, for prices of memory that change.

    Invariants:
    1. every array that a key names by its address is held;
    2. ``_kept[number]`` is the array whose bytes ``_numbers`` has under this number.

    Args:
        posed: the graph on its mesh.
    """

    def __init__(self, posed: Posed) -> None:
        self.posed = posed
        self.choices = posed.hints.choices
        self.num_axes = self.choices[0].shape[1]
        self._kinds = {id(own): own for own in self.choices}
        self._along: dict[tuple[int, int, int], int] = {}
        self._numbers: dict[bytes, int] = {}
        self._kept: list[Indices] = []
        self._cuts: dict[tuple, tuple[Table, Table]] = {}
        self._orders: dict[int, tuple[int, ...]] = {}
        self._gains: dict[tuple, tuple[Table, Indices]] = {}

    def check_invariants(self) -> None:
        for key, (table, cut) in self._cuts.items():
            assert key[0] == id(table), key
            assert cut.shape == tuple(len(self._kept[at]) for at in key[1:]), key
        assert all(key[0] == id(table) for key, (table, _) in self._gains.items())
        assert all(id(own) == at for at, own in self._kinds.items())
        assert all(self._kept[at].tobytes() == name for name, at in self._numbers.items())

    def least(
        self, problem: Problem, starts: Sequence[Sequence[int]] = ()
    ) -> tuple[tuple[int, ...], float]:
        """Labels that no change of one axis alone makes better, and their value.

        With one axis they are the best there are.

        Args:
            problem: the posed one, its costs changed at will.
            starts: labels to set out from; by default those that replicate everything.
        """
        every = list(map(tuple, starts)) or [tuple(0 for _ in problem.seconds)]
        cache = TableCache()
        ends = [self._descend(problem, start, cache) for start in every]
        return min(ends, key=lambda end: end[1])

    def settled(self, problem: Problem, labels: Sequence[int]) -> tuple[int, ...]:
        """Labels as good as these or better, looked for along all axes together."""
        if self.num_axes == 1:
            return tuple(labels)
        found = minimise(problem, hints=self.posed.hints, start=list(labels), sweeps=0)
        return min(tuple(labels), found.labels, key=problem.value)

    def _descend(
        self, problem: Problem, labels: tuple[int, ...], cache: TableCache
    ) -> tuple[tuple[int, ...], float]:
        best, axis = problem.value(labels), 0
        still = -1  # an axis that was solved last stays best while no other moves
        while still < self.num_axes - 1:
            labels = self._along_axis(problem, labels, axis, cache)
            value = problem.value(labels)
            still = still + 1 if value > best * (1 - TOLERANCE) else min(still + 1, 0)
            best, axis = min(best, value), (axis + 1) % self.num_axes
        return labels, best

    def nearest(self, choices: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Labels with these choices where nodes have them, else those that replicate."""
        labels = [0] * len(self.posed.problem.seconds)
        for v, wanted in enumerate(choices):
            same = np.flatnonzero((self.choices[v] == np.asarray(wanted)).all(axis=1))
            labels[v] = int(same[0]) if len(same) else 0
        return tuple(labels)

    def _along_axis(
        self, problem: Problem, labels: Sequence[int], axis: int, cache: TableCache
    ) -> tuple[int, ...]:
        """The best labels of those that differ from the given along one axis at most."""
        left = self._left(problem, labels, axis)
        part = self._part(problem, left)
        if axis not in self._orders:
            groups = [term.variables for term in part.terms]
            order, _ = elimination_order(part.num_labels, groups, SMALL_ENTRIES)
            self._orders[axis] = order
        found = minimise(
            part,
            sweeps=SWEEPS,
            max_entries=SMALL_ENTRIES,
            cache=cache,
            order=self._orders[axis],
        ).labels
        return tuple(int(self._kept[k][at]) for k, at in zip(left, found, strict=True))

    def _left(self, problem: Problem, labels: Sequence[int], axis: int) -> list[int]:
        """For every variable the number of the labels that are left to it.

        A copy is left with the placements that two readers or more gain by.
        """
        found = []
        for own, label in zip(self.choices, labels, strict=False):
            key = (id(own), label, axis)
            if key not in self._along:
                same = own == own[label]
                same[:, axis] = True
                self._along[key] = self._number(np.flatnonzero(same.all(axis=1)))
            found.append(self._along[key])
        for copy in self.posed.hints.copies:
            gains = np.zeros(len(problem.seconds[copy.variable]), dtype=np.intp)
            for number in range(copy.first_term, copy.first_term + len(copy.readers)):
                (maker, _, reader), table = problem.terms[number]
                gains += self._gain(table, found[maker], found[reader])
            gains[0] = 2  # none at all
            found.append(self._number(np.flatnonzero(gains > 1)))
        return found

    def _gain(self, table: Table, maker: int, reader: int) -> Indices:
        """Which labels of a copy a reader is quicker with than without: 0 or 1."""
        key = (id(table), maker, reader)
        if key not in self._gains:
            part = table[self._kept[maker]][:, :, self._kept[reader]]
            gain = np.asarray((part < part[:, :1]).any(axis=(0, 2)), dtype=np.intp)
            self._gains[key] = table, gain
        return self._gains[key][1]

    def _part(self, problem: Problem, left: Sequence[int]) -> Problem:
        """Equal arrays stay one array."""
        seconds = tuple(self._cut(s, (at,)) for s, at in zip(problem.seconds, left, strict=True))
        terms = (
            Term(variables, self._cut(table, tuple(left[v] for v in variables)))
            for variables, table in problem.terms
        )
        return Problem(seconds, tuple(terms))

    def _cut(self, table: Table, left: tuple[int, ...]) -> Table:
        key = (id(table), *left)
        if key not in self._cuts:
            cut = np.ascontiguousarray(table[np.ix_(*(self._kept[at] for at in left))])
            self._cuts[key] = table, cut
        return self._cuts[key][1]

    def _number(self, labels: Indices) -> int:
        name = labels.tobytes()
        if name not in self._numbers:
            self._numbers[name] = len(self._kept)
            self._kept.append(labels)
        return self._numbers[name]
