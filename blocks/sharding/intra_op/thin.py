"""``thin``: labels taken out of a problem until it can be eliminated. Needs numpy."""

from collections.abc import Sequence

import numpy as np

from blocks.sharding.intra_op.dual import Dual
from blocks.sharding.intra_op.eliminate import Elimination, eliminate
from blocks.sharding.intra_op.elimination_order import elimination_order
from blocks.sharding.intra_op.problem import EXACT, Minimum, Problem, Term

MAX_SWEEPS = 30

SMALL_ENTRIES = 2**16
"""Tables up to this many entries are quicker than more sweeps."""


def thin(
    problem: Problem,
    done: Elimination,
    start: Sequence[int] | None,
    sweeps: int,
    max_entries: int | float,
) -> Minimum:
    """A choice and a bound, for tables over any number of variables.

    What has small tables has been eliminated. A bound from below (``Dual``) then shows which
    labels no better choice has, until what is left can be eliminated, or the bound meets the
    choice, or the sweeps are used up: then the bound says how far it may be from the best.

    Args:
        done: of the problem.
        start: a choice to begin with.
        sweeps: for the bound, at most.
        max_entries: of the largest table.
    """
    labels = [0] * len(problem.seconds)
    if not done.terms:
        chosen = tuple(done.complete(labels))
        value = problem.value(chosen)
        return Minimum(chosen, value, value)
    core, left = _core(problem, done.terms)
    known = None if start is None else tuple(start[v] for v in left)
    found = _thin(core, known, min(sweeps, MAX_SWEEPS), max_entries)
    for v, label in zip(left, found.labels, strict=True):
        labels[v] = label
    chosen = tuple(done.complete(labels))
    value = problem.value(chosen)
    if found.bound == found.seconds:
        return Minimum(chosen, value, value)
    return Minimum(chosen, value, min(found.bound + done.seconds, value))


def _core(problem: Problem, terms: Sequence[Term]) -> tuple[Problem, tuple[int, ...]]:
    """A problem of only the variables that terms are over."""
    left = tuple(sorted({v for term in terms for v in term.variables}))
    number = {v: at for at, v in enumerate(left)}
    seconds = [np.zeros(problem.num_labels[v]) for v in left]
    shared = []
    for variables, table in terms:
        if len(variables) == 1:
            at = number[variables[0]]
            seconds[at] = seconds[at] + table
        else:
            shared.append(Term(tuple(number[v] for v in variables), table))
    return Problem(tuple(seconds), tuple(shared)), left


def _thin(
    problem: Problem, known: tuple[int, ...] | None, sweeps: int, max_entries: int | float
) -> Minimum:
    """The same for a problem without small tables."""
    dual = Dual(problem)
    best = tuple(dual.labels()) if known is None else known
    least, bound = problem.value(best), dual.bound()
    groups = [term.variables for term in dual.terms]
    for _ in range(0, sweeps, 3):
        for _ in range(3):
            dual.sweep()
        for labels in (dual.labels(), best):
            value, labels = _polish(problem, labels)
            if value < least:
                best, least = tuple(labels), value
        now = dual.bound()
        slack = EXACT * max(abs(least), abs(now))
        bound, before = max(bound, now), bound
        if least - bound <= slack:
            return Minimum(best, least, least)
        flags = [now + dual.beyond(v) < least - slack for v in range(len(best))]
        if not all(f.any() for f in flags):
            return Minimum(best, least, least)
        dual.restrict(flags)
        counts = [len(keep) for keep in dual.keep]
        order, largest = elimination_order(counts, groups, max_entries)
        slow = bound - before <= 1e-3 * (least - bound)
        if len(order) == len(counts) and (slow or largest <= SMALL_ENTRIES):
            return _best_of_rest(problem, dual, order, Minimum(best, least, bound))
    counts = [len(keep) for keep in dual.keep]
    order, _ = elimination_order(counts, groups, 2**6 * max_entries)
    if sweeps and len(order) == len(counts):
        return _best_of_rest(problem, dual, order, Minimum(best, least, bound))
    return Minimum(best, least, bound)


def _best_of_rest(problem: Problem, dual: Dual, order: Sequence[int], known: Minimum) -> Minimum:
    """Among the labels that are left; those taken out are in no choice better than the known."""
    done = eliminate(dual.rest(), order=order)
    labels = done.complete([0] * len(order))
    chosen = tuple(int(dual.keep[v][at]) for v, at in enumerate(labels))
    value = problem.value(chosen)
    if value < known.seconds:
        return Minimum(chosen, value, value)
    return Minimum(known.labels, known.seconds, known.seconds)


def _polish(problem: Problem, labels: Sequence[int]) -> tuple[float, list[int]]:
    """Change one label at a time while that helps."""
    chosen = list(labels)
    of: list[list[Term]] = [[] for _ in chosen]
    for term in problem.terms:
        for v in term.variables:
            of[v].append(term)
    changed = True
    while changed:
        changed = False
        for v, terms in enumerate(of):
            total = problem.seconds[v].copy()
            for variables, table in terms:
                total += table[tuple(slice(None) if u == v else chosen[u] for u in variables)]
            at = int(np.argmin(total))
            if total[at] < total[chosen[v]] - EXACT * abs(total[chosen[v]]):
                chosen[v], changed = at, True
    return problem.value(chosen), chosen
