"""``eliminate``: the least sum of tables, one variable at a time; exact. Needs numpy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blocks.sharding.intra_op.elimination_order import MAX_ENTRIES, elimination_order
from blocks.sharding.intra_op.problem import Problem, Table, Term
from blocks.sharding.intra_op.table_cache import TableCache


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
