"""``Dual``: a problem's costs moved about between its terms until each alone bounds the whole.

Needs numpy.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.problem import Problem, Table, Term


class Dual:
    """The same costs in other places: what any choice costs in all stays as it is.

    Sweeps take what a variable's labels cost at least in each of its terms, and share it out to
    the terms that the sweep has yet to come to. The sum of the least entries of all terms bounds
    the problem from below, and rises.

    Invariants:
    1. for every choice of labels the costs add up to the problem's;
    2. ``keep[v]`` are the labels of ``v`` that are left, as the problem numbers them, and tables
       have an entry for each.

    Reference:
        Kolmogorov, "Convergent tree-reweighted message passing", 2006, and "A new look at
        reweighted message passing", 2015 (terms of more than two).
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.keep = [np.arange(count) for count in problem.num_labels]
        self.seconds = [seconds.copy() for seconds in problem.seconds]
        merged: dict[tuple[int, ...], Table] = {}
        for variables, table in problem.terms:
            order = sorted(range(len(variables)), key=lambda i: variables[i])
            key = tuple(variables[i] for i in order)
            table = table.transpose(order)
            merged[key] = merged[key] + table if key in merged else table.copy()
        self.terms = [Term(variables, table) for variables, table in merged.items()]
        self._of: list[list[tuple[int, int]]] = [[] for _ in problem.seconds]
        for at, (variables, _) in enumerate(self.terms):
            for axis, v in enumerate(variables):
                self._of[v].append((at, axis))

    def check_invariants(self, labels: Sequence[int]) -> None:
        """For one choice of labels, which must be left."""
        at = [
            int(np.flatnonzero(k == label)[0]) for k, label in zip(self.keep, labels, strict=True)
        ]
        total = sum(float(s[i]) for s, i in zip(self.seconds, at, strict=True))
        total += sum(float(t[tuple(at[v] for v in variables)]) for variables, t in self.terms)
        value = self.problem.value(labels)
        assert abs(total - value) <= 1e-9 * max(1.0, abs(value)), (total, value)

    def sweep(self) -> None:
        """Once through all variables and back."""
        for v in range(len(self.seconds)):
            self._pass(v, ahead=True)
        for v in reversed(range(len(self.seconds))):
            self._pass(v, ahead=False)

    def bound(self) -> float:
        """No choice costs less."""
        total = sum(float(seconds.min()) for seconds in self.seconds)
        return total + sum(float(term.seconds.min()) for term in self.terms)

    def beyond(self, v: int) -> Table:
        """How much more than ``bound()`` a choice with each label of a variable costs at least."""
        over = self.seconds[v] - self.seconds[v].min()
        for at, axis in self._of[v]:
            least = _least(self.terms[at].seconds, axis)
            over = over + (least - least.min())
        return over

    def labels(self) -> list[int]:
        """A choice, variable by variable: the least given those before it."""
        chosen: list[int] = []
        for v, seconds in enumerate(self.seconds):
            total = seconds.copy()
            for at, axis in self._of[v]:
                variables, table = self.terms[at]
                known = tuple(
                    chosen[u] if u < v else slice(None) for u in variables
                )  # before v they are decided, v and those behind it are open
                open_axes = [i for i, u in enumerate(variables) if u >= v]
                total += _least(table[known], open_axes.index(axis))
            chosen.append(int(np.argmin(total)))
        return [int(k[at]) for k, at in zip(self.keep, chosen, strict=True)]

    def restrict(self, left: Sequence[npt.NDArray[np.bool_]]) -> None:
        """Leave only some labels of each variable."""
        for v, flags in enumerate(left):
            if not flags.all():
                self.keep[v] = self.keep[v][flags]
                self.seconds[v] = self.seconds[v][flags]
        for at, (variables, table) in enumerate(self.terms):
            if any(not left[v].all() for v in variables):
                self.terms[at] = Term(variables, table[np.ix_(*(left[v] for v in variables))])

    def rest(self) -> Problem:
        """The problem of the labels that are left, with the costs where they are now."""
        return Problem(tuple(self.seconds), tuple(self.terms))

    def _pass(self, v: int, *, ahead: bool) -> None:
        seconds = self.seconds[v]
        behind, onward = 0, []
        for at, axis in self._of[v]:
            variables, table = self.terms[at]
            least = _least(table, axis)
            table -= _along(least, axis, table.ndim)
            seconds += least
            # A term passes costs on where it has a variable that the sweep comes to later.
            more = axis < len(variables) - 1 if ahead else axis > 0
            fewer = axis > 0 if ahead else axis < len(variables) - 1
            behind += fewer
            if more:
                onward.append((at, axis))
        share = seconds / max(len(onward), behind, 1)
        for at, axis in onward:
            table = self.terms[at].seconds
            table += _along(share, axis, table.ndim)
            seconds -= share


def _least(table: Table, axis: int) -> Table:
    others = tuple(i for i in range(table.ndim) if i != axis)
    return table.min(axis=others) if others else table.copy()


def _along(vector: Table, axis: int, ndim: int) -> Table:
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])
