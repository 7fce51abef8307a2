"""``fans_of``: the fans of a posed graph. Needs numpy."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.fan import Fan, Groups
from blocks.sharding.intra_op.fan_dual import FanDual
from blocks.sharding.intra_op.hints import Copy, Hints
from blocks.sharding.intra_op.problem import Problem, Table


def fans_of(problem: Problem, copies: Sequence[Copy]) -> list[Fan] | None:
    """A fan for every term of two variables, and one for each shared copy with its readers.

    What fans cost together is never more than the terms do, and the same unless readers of one
    value share several reshardings, for which a copy has no label.

    Returns:
        None where terms are neither between two variables nor those of a copy.
    """
    known = _Groups()
    fans = []
    of_copies: set[int] = set()
    for copy in copies:
        terms = range(copy.first_term - 1, copy.first_term + len(copy.readers))
        of_copies.update(terms)
        fan = _of_copy(problem, copy, known)
        if fan is None:
            return None
        fans.append(fan)
    for at, (variables, table) in enumerate(problem.terms):
        if at in of_copies or len(variables) < 2:
            continue
        if len(variables) > 2:
            return None
        first, last = min(variables), max(variables)
        made, wanted, prices = known.of_table(table if first == variables[0] else table.T)
        fans.append(Fan(first, made, (last,), (wanted,), prices))
    return fans


def dual_of(problem: Problem, hints: Hints) -> FanDual | None:
    """The bound of a posed graph, before its first sweep; None where ``fans_of`` has none."""
    fans = fans_of(problem, hints.copies)
    return None if fans is None else FanDual(problem.seconds, fans)


class _Groups:
    """Equal tables and equal codes are looked through once."""

    def __init__(self) -> None:
        self._of_table: dict[tuple[int, tuple[int, ...]], tuple[Groups, Groups, Table]] = {}
        self._of_codes: dict[int, Groups] = {}
        self._same: dict[tuple[int, int], bool] = {}
        self._held: list[npt.NDArray[np.generic]] = []

    def of_table(self, table: Table) -> tuple[Groups, Groups, Table]:
        """Rows that are equal are one, and so are columns."""
        key = (table.__array_interface__["data"][0], table.strides)
        if key not in self._of_table:
            self._held.append(table)
            rows, row_of = np.unique(table, axis=0, return_inverse=True)
            both, column_of = np.unique(rows, axis=1, return_inverse=True)
            self._of_table[key] = Groups.of(row_of.ravel()), Groups.of(column_of.ravel()), both
        return self._of_table[key]

    def of_codes(self, codes: npt.NDArray[np.intp]) -> Groups:
        if id(codes) not in self._of_codes:
            self._held.append(codes)
            self._of_codes[id(codes)] = Groups.of(codes)
        return self._of_codes[id(codes)]


def _of_copy(problem: Problem, copy: Copy, known: _Groups) -> Fan | None:
    """None where the terms are not, or no longer, what the copy's prices make them."""
    readers, wanted = [], []
    for at, (reader, wants) in enumerate(zip(copy.readers, copy.wants, strict=True)):
        alone = problem.terms[copy.first_term + at].seconds[:, 0, :]
        total = np.zeros(alone.shape)
        for place, codes in enumerate(wants):
            fresh = np.ones(len(codes), dtype=bool)
            for other in wants[:place]:
                fresh &= codes != other
            total += np.where(fresh, copy.prices[np.ix_(copy.makes, codes)], 0.0)
            readers.append(reader)
            wanted.append(known.of_codes(codes))
        if not np.array_equal(total, alone):
            return None
    if copy.maker >= min(copy.readers):
        return None
    made = known.of_codes(copy.makes)
    asked = np.unique(np.concatenate([groups.kinds for groups in wanted]))
    prices = copy.prices[np.ix_(made.kinds, asked)]
    wanted = [groups.numbered(asked) for groups in wanted]
    return Fan(copy.maker, made.numbered(made.kinds), readers, wanted, prices)
