"""``settle``: the labels of a posed graph that cost least, however knotted it is. Needs numpy."""

from collections.abc import Sequence

import numpy as np

from blocks.sharding.intra_op.eliminate import eliminate
from blocks.sharding.intra_op.fan_dual import FanDual
from blocks.sharding.intra_op.hints import Copy
from blocks.sharding.intra_op.parts import Parts, whole
from blocks.sharding.intra_op.problem import EXACT, Minimum, Problem
from blocks.sharding.intra_op.table_cache import TableCache

EVERY = 3
"""Sweeps after which a choice is read off."""

SLOW = 0.01
"""Share of the gap that sweeps close where more of them are not worth their time."""


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
    parts: Parts | None = None
    best = None if start is None else tuple(start)
    least = np.inf if best is None else problem.value(best)
    last = -np.inf
    for done in range(1, sweeps + 1):
        dual.sweep()
        if done % EVERY and done < sweeps:
            continue
        labels = with_copies(problem, dual.labels(), copies)
        if (value := problem.value(labels)) < least or best is None:
            best, least = labels, value
        if least - dual.bound <= max(EXACT, tolerance) * abs(least):
            break
        slow = dual.bound - last <= SLOW * (least - dual.bound)
        last = dual.bound
        parts = parts or Parts(problem, copies)
        near = parts.near(dual.least, dual.bound, least, max_entries)
        if near is None or not (near[1] or slow or done == sweeps):
            continue
        keep, all_of_them = near
        part = parts.of(problem, keep)
        found = eliminate(part, max_entries=np.inf, cache=cache, order=parts.cliques.order)
        labels = whole(keep, found.complete([0] * len(keep)))
        if (value := problem.value(labels)) < least:
            best, least = labels, value
        if all_of_them:
            return Minimum(best, least, least)
        if slow:
            break
    assert best is not None
    proved = least - dual.bound <= EXACT * abs(least)
    return Minimum(best, least, least if proved else min(dual.bound, least))


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
