"""``minimise``: the labels that cost least, exactly, or with a proved bound. Needs numpy."""

from collections.abc import Sequence

from blocks._checks import fail
from blocks.sharding.intra_op.eliminate import eliminate
from blocks.sharding.intra_op.elimination_order import MAX_ENTRIES, elimination_order
from blocks.sharding.intra_op.fan_dual import FanDual
from blocks.sharding.intra_op.fans import dual_of
from blocks.sharding.intra_op.finite import finite
from blocks.sharding.intra_op.hints import Hints
from blocks.sharding.intra_op.problem import Minimum, Problem
from blocks.sharding.intra_op.settle import settle
from blocks.sharding.intra_op.table_cache import TableCache
from blocks.sharding.intra_op.thin import thin

EASY_ENTRIES = 2**14
"""Tables up to this many entries are built without looking for a way around."""

SWEEPS = 200
"""At most, where a problem is too knotted to be eliminated."""

QUICK_SWEEPS = 40
QUICK_TOLERANCE = 1e-3
"""Share of the costs that a quick choice may be from the bound."""


def minimise(
    problem: Problem,
    *,
    hints: Hints | None = None,
    start: Sequence[int] | None = None,
    sweeps: int = SWEEPS,
    max_entries: int | float = MAX_ENTRIES,
    cache: TableCache | None = None,
    order: Sequence[int] | None = None,
    dual: FanDual | None = None,
) -> Minimum:
    """One label for every variable at least cost.

    Where tables stay small enough, all variables are eliminated: exact. Else a bound from below is
    raised sweep by sweep, and choices are read off it; which labels no better choice has is known
    by then, and what is left is eliminated once it can be. With the hints of a posed graph the
    bound meets the choice on nearly all graphs (``settle``); without them it is weaker (``thin``).

    Args:
        hints: what is known of a posed graph's problem beside its terms.
        start: a choice to beat.
        sweeps: for the bound, at most; 0 for a choice within a thousandth of the bound, quickly.
        max_entries: of the largest table; 8 times as many without hints, and 64 times as many for
            the last step of a proof.
        order: of the variables that go first, known to bring small tables; the bound settles the
            others. Problems that differ in their numbers need no new one.
        dual: of a problem with the same terms, to go on from: costs of labels may differ.

    Raises:
        ValueError: every choice costs infinitely much.
    """
    left, keep, big = finite(problem)
    cache = cache or TableCache()
    if left is not problem:
        start = None
        hints, dual = None if hints is None else hints.restrict(keep), None
    if order is None:
        found = _minimise(left, hints, start, sweeps, max_entries, cache, dual)
    else:
        done = eliminate(left, cache=cache, order=order)
        found = thin(left, done, start, sweeps, max_entries)
    if found.seconds >= big:
        raise fail("problem", "a choice of labels that is allowed", "none")
    labels = tuple(int(k[at]) for k, at in zip(keep, found.labels, strict=True))
    value = problem.value(labels)
    return Minimum(labels, value, value if found.bound == found.seconds else found.bound)


def _minimise(
    problem: Problem,
    hints: Hints | None,
    start: Sequence[int] | None,
    sweeps: int,
    max_entries: int | float,
    cache: TableCache,
    dual: FanDual | None,
) -> Minimum:
    easy = min(EASY_ENTRIES, max_entries)
    if hints is not None:
        if (done := _at_once(problem, easy, cache)) is not None:
            return done
        if dual is None:
            dual = dual_of(problem, hints)
        else:
            dual.reprice(problem.seconds)
    if hints is None or dual is None:
        done = _at_once(problem, 2**3 * max_entries, cache)
        if done is not None:
            return done
        some = eliminate(problem, max_entries=easy, cache=cache)
        return thin(problem, some, start, sweeps, max_entries)
    found = settle(
        problem,
        dual,
        hints.copies,
        start=start,
        sweeps=sweeps or QUICK_SWEEPS,
        tolerance=0.0 if sweeps else QUICK_TOLERANCE,
        max_entries=max_entries,
        cache=cache,
    )
    if found.bound < found.seconds and sweeps:
        return _at_once(problem, max_entries, cache) or found
    return found


def _at_once(problem: Problem, max_entries: int | float, cache: TableCache) -> Minimum | None:
    """By elimination alone; None where tables would be too large."""
    binding = problem.binding()
    groups = [
        tuple(v for v in term.variables if problem.num_labels[v] > 1) for term in binding.terms
    ]
    order, _ = elimination_order(problem.num_labels, groups, max_entries)
    if len(order) < len(problem.seconds):
        return None
    done = eliminate(binding, max_entries=max_entries, cache=cache, order=order)
    labels = tuple(done.complete([0] * len(order)))
    value = problem.value(labels)
    return Minimum(labels, value, value)
