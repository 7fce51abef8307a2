"""``TableCache``: what has been worked out from tables, by the tables. Needs numpy."""

from collections.abc import Sequence

import numpy as np

from blocks.sharding.intra_op.problem import Table, Term


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
