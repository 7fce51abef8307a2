"""``settle``: the labels of a posed graph that cost least, however knotted it is. Needs numpy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.eliminate import eliminate
from blocks.sharding.intra_op.elimination_order import Cliques
from blocks.sharding.intra_op.fan_dual import FanDual
from blocks.sharding.intra_op.hints import Copy
from blocks.sharding.intra_op.problem import EXACT, Minimum, Problem, Table, Term
from blocks.sharding.intra_op.table_cache import TableCache

EVERY = 5
"""Sweeps after which a choice is read off."""

SHARES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.0)
"""Of what a choice may be from the bound: how far labels are that a part of the problem keeps."""


def settle(
    problem: Problem,
    dual: FanDual,
    copies: Sequence[Copy],
    *,
    start: Sequence[int] | None,
    sweeps: int,
    tolerance: float,
    max_entries: int | float,
    cache: TableCache,
) -> Minimum:
    """A choice and a bound are brought together from both sides until they meet.

    The bound rises by sweeps; choices are read off it. It also says of every label how much a
    choice with it costs at least: labels that no better choice has are taken out, and the rest is
    eliminated once its tables are small.

    Args:
        dual: of the problem's fans.
        copies: shared copies.
        start: a choice to beat.
        sweeps: at most.
        tolerance: share of the costs that the choice may be from the bound.
    """
    parts = _Parts(problem, dual, copies, max_entries, cache)
    best, least = None, np.inf
    if start is not None:
        best, least = tuple(start), problem.value(start)
    last = -np.inf
    for done in range(1, sweeps + 1):
        dual.sweep()
        if done % EVERY and done < sweeps:
            continue
        labels = with_copies(problem, dual.labels(), copies)
        value = problem.value(labels)
        if value < least or best is None:
            best, least = labels, value
        gap = least - dual.bound
        if gap <= EXACT * abs(least):
            return Minimum(best, least, least)
        if gap <= tolerance * abs(least):
            return Minimum(best, least, dual.bound)
        still = dual.bound - last <= 0.01 * gap
        last = dual.bound
        found = parts.solve(gap, dual.least, prove_only=not (still or done == sweeps))
        if found is not None:
            if found.value < least:
                best, least = found.labels, found.value
            if found.proved:
                return Minimum(best, least, least)
            if least - dual.bound <= tolerance * abs(least):
                return Minimum(best, least, dual.bound)
        if still:
            break
    assert best is not None
    return Minimum(best, least, min(dual.bound, least))


def with_copies(problem: Problem, labels: Sequence[int], copies: Sequence[Copy]) -> tuple[int, ...]:
    """The same with the best of every shared copy."""
    chosen = list(labels)
    for copy in copies:
        at = chosen[copy.maker]
        costs = problem.seconds[copy.variable] + problem.terms[copy.first_term - 1].seconds[at]
        for place, reader in enumerate(copy.readers, copy.first_term):
            costs = costs + problem.terms[place].seconds[at, :, chosen[reader]]
        chosen[copy.variable] = int(np.argmin(costs))
    return tuple(chosen)


class _Solved(NamedTuple):
    labels: tuple[int, ...]
    value: float
    proved: bool


class _Parts:
    """Parts of a problem: the labels that could yet be better, or some of them."""

    def __init__(
        self,
        problem: Problem,
        dual: FanDual,
        copies: Sequence[Copy],
        max_entries: int | float,
        cache: TableCache,
    ) -> None:
        self.problem, self.dual, self.copies = problem, dual, copies
        self.max_entries, self.cache = max_entries, cache
        self.cliques = Cliques.of(problem.num_labels, [t.variables for t in problem.terms])

    def solve(self, gap: float, least: Sequence[Table], prove_only: bool) -> _Solved | None:
        """The best choice among labels that a choice with may cost as little as ``gap`` above the
        bound; or among fewer of them, where tables would be too large."""
        bound = self.dual.bound
        for share in SHARES[: 1 if prove_only else None]:
            limit = bound + share * gap
            keep = [np.flatnonzero(costs <= max(limit, costs.min())) for costs in least]
            keep = self._copied(keep)
            if self.cliques.largest([len(k) for k in keep]) > self.max_entries:
                continue
            labels = self._eliminate(keep)
            return _Solved(labels, self.problem.value(labels), share == 1.0)
        return None

    def _copied(self, keep: list[npt.NDArray[np.intp]]) -> list[npt.NDArray[np.intp]]:
        """Copies of what two readers or more may want."""
        for copy in self.copies:
            often = np.zeros(copy.prices.shape[1])
            for reader, wants in zip(copy.readers, copy.wants, strict=True):
                often[np.unique(np.concatenate([codes[keep[reader]] for codes in wants]))] += 1
            useful = often[copy.copied] > 1
            useful[0] = True
            keep[copy.variable] = np.flatnonzero(useful)
        return keep

    def _eliminate(self, keep: Sequence[npt.NDArray[np.intp]]) -> tuple[int, ...]:
        cut: dict[tuple, Table] = {}
        names = [k.tobytes() for k in keep]

        def part(table: Table, variables: tuple[int, ...]) -> Table:
            key = (id(table), *(names[v] for v in variables))
            if key not in cut:
                cut[key] = np.asarray(table[np.ix_(*(keep[v] for v in variables))])
            return cut[key]

        seconds = tuple(part(s, (v,)) for v, s in enumerate(self.problem.seconds))
        terms = tuple(Term(t.variables, part(t.seconds, t.variables)) for t in self.problem.terms)
        rest = Problem(seconds, terms)
        done = eliminate(rest, max_entries=np.inf, cache=self.cache, order=self.cliques.order)
        found = done.complete([0] * len(keep))
        return tuple(int(k[at]) for k, at in zip(keep, found, strict=True))
