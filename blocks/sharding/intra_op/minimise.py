"""``minimise``: the labels that cost least, exactly, or with a proved bound. Needs numpy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blocks._checks import fail
from blocks.sharding.intra_op.dual import Dual
from blocks.sharding.intra_op.eliminate import (
    MAX_ENTRIES,
    Elimination,
    TableCache,
    eliminate,
    elimination_order,
)
from blocks.sharding.intra_op.hints import Hints
from blocks.sharding.intra_op.problem import Problem, Table, Term
from blocks.sharding.intra_op.settle import settle

EASY_ENTRIES = 2**14
"""Tables up to this many entries are built without looking for a way around."""

SWEEPS = 30
"""Of ``Dual``, at most, where a problem is too knotted to be eliminated."""

EXACT = 1e-12
"""Share of the costs that is taken for rounding."""


class Minimum(NamedTuple):
    """A choice of labels.

    seconds: of it.
    bound: no choice costs less; the same number where the choice is proved to be best.
    """

    labels: tuple[int, ...]
    seconds: float
    bound: float


def minimise(
    problem: Problem,
    *,
    hints: Hints | None = None,
    start: Sequence[int] | None = None,
    sweeps: int = SWEEPS,
    max_entries: int | float = MAX_ENTRIES,
    cache: TableCache | None = None,
    order: Sequence[int] | None = None,
) -> Minimum:
    """One label for every variable at least cost.

    Where tables stay small enough, all variables are eliminated: exact. Else a good choice is
    looked for first (``settle``); a bound from below (``Dual``) then shows which labels no better
    choice has, until what is left can be eliminated, or the bound meets the choice, or the sweeps
    are used up: then the bound says how far it may be from the best.

    Args:
        hints: how labels and variables hang together.
        start: a choice to begin with.
        sweeps: for the bound; with 0 there is next to none.
        max_entries: of the largest table; 8 times as many without hints, and 64 times as many for
            the last step of a proof.
        order: of the variables that go first, known to bring small tables; the bound settles the
            others. Problems that differ in their numbers need no new one.

    Raises:
        ValueError: every choice costs infinitely much.
    """
    finite, keep, big = _finite(problem)
    if hints is not None and finite is not problem:
        rows = zip(hints.choices, keep, strict=False)
        hints = hints._replace(choices=tuple(own[kept] for own, kept in rows))
        start = None
    cache = cache or TableCache()
    if order is None:
        found = _minimise(finite, hints, start, sweeps, max_entries, cache)
    else:
        found = _rest_by_bound(
            *(finite, eliminate(finite, cache=cache, order=order)),
            *(None if finite is not problem else start, sweeps, max_entries),
        )
    if found.seconds >= big:
        raise fail("problem", "a choice of labels that is allowed", "none")
    labels = tuple(int(k[at]) for k, at in zip(keep, found.labels, strict=True))
    value = problem.value(labels)
    return Minimum(labels, value, value if found.bound == found.seconds else found.bound)


def _finite(problem: Problem) -> tuple[Problem, list[npt.NDArray[np.intp]], float]:
    """Without the labels that may not be chosen; pairs that may not be cost more than all else."""
    allowed = [np.isfinite(seconds) for seconds in problem.seconds]
    for v, flags in enumerate(allowed):
        if not flags.any():
            raise fail(f"labels of variable {v}", "one that may be chosen", "none")
    keep = [np.flatnonzero(flags) for flags in allowed]
    tables = {id(t.seconds): t.seconds for t in problem.terms}.values()
    if all(flags.all() for flags in allowed) and all(np.isfinite(t).all() for t in tables):
        return problem, keep, np.inf
    total = sum(float(np.abs(s[f]).max()) for s, f in zip(problem.seconds, allowed, strict=True))
    largest: dict[int, float] = {}
    for _, table in problem.terms:
        if id(table) not in largest:
            held = table[np.isfinite(table)]
            largest[id(table)] = float(np.abs(held).max()) if held.size else 0.0
        total += largest[id(table)]
    big = 2 * total + 1.0
    made: dict[tuple, Table] = {}
    terms = []
    for variables, table in problem.terms:
        key = (id(table), *(allowed[v].tobytes() for v in variables))
        if key not in made:
            cut = table[np.ix_(*(keep[v] for v in variables))]
            made[key] = np.where(np.isfinite(cut), cut, big)
        terms.append(Term(variables, made[key]))
    singles: dict[tuple[int, bytes], Table] = {}
    seconds = []
    for table, flags in zip(problem.seconds, allowed, strict=True):
        single = singles.setdefault((id(table), flags.tobytes()), table[flags])
        seconds.append(single)
    return Problem(tuple(seconds), tuple(terms)), keep, big


def _minimise(
    problem: Problem,
    hints: Hints | None,
    start: Sequence[int] | None,
    sweeps: int,
    max_entries: int | float,
    cache: TableCache,
) -> Minimum:
    groups = [
        tuple(v for v in term.variables if problem.num_labels[v] > 1) for term in problem.terms
    ]
    limit = max_entries if hints is not None else 2**3 * max_entries  # no other way is quick
    order, _ = elimination_order(problem.num_labels, groups, limit)
    labels = [0] * len(problem.seconds)
    if len(order) == len(labels):
        done = eliminate(problem, max_entries=limit, cache=cache, order=order)
        return _as_minimum(problem, done.complete(labels), None)
    settled = settle(problem, hints, start, cache) if hints is not None else start
    easy = min(EASY_ENTRIES, max_entries)
    done = eliminate(problem, max_entries=easy, cache=cache)
    return _rest_by_bound(problem, done, settled, sweeps, max_entries)


def _rest_by_bound(
    problem: Problem,
    done: Elimination,
    settled: Sequence[int] | None,
    sweeps: int,
    max_entries: int | float,
) -> Minimum:
    """What is left after some variables were eliminated."""
    labels = [0] * len(problem.seconds)
    if not done.terms:
        return _as_minimum(problem, done.complete(labels), None)
    core, left = _core(problem, done.terms)
    known = None if settled is None else tuple(settled[v] for v in left)
    found = _thin(core, known, sweeps, max_entries)
    for v, label in zip(left, found.labels, strict=True):
        labels[v] = label
    proved = found.bound == found.seconds
    bound = None if proved else found.bound + done.seconds
    return _as_minimum(problem, done.complete(labels), bound)


def _as_minimum(problem: Problem, labels: Sequence[int], bound: float | None) -> Minimum:
    value = problem.value(labels)
    return Minimum(tuple(labels), value, value if bound is None else min(bound, value))


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
        if len(order) == len(counts) and (slow or largest <= 4 * EASY_ENTRIES):
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
