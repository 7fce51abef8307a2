"""``with_memory``: the labels that cost least among those that keep to a memory cap."""

from typing import NamedTuple

import numpy as np

from blocks.sharding.intra_op.elimination_order import MAX_ENTRIES
from blocks.sharding.intra_op.fan_dual import FanDual
from blocks.sharding.intra_op.fans import dual_of
from blocks.sharding.intra_op.hints import Hints
from blocks.sharding.intra_op.minimise import SWEEPS, minimise
from blocks.sharding.intra_op.parts import Parts, whole
from blocks.sharding.intra_op.problem import EXACT, Minimum, Problem
from blocks.sharding.intra_op.table_cache import TableCache
from blocks.sharding.intra_op.within import Found, best_within

MAX_WAYS = 20_000
"""Choices that the search of what prices leave open keeps at a time."""

MAX_PRICES = 40

PRICED_SWEEPS = 9
"""At the best price, for what a choice with each label takes at least."""

PART_ENTRIES = 2**24
"""Of the tables of a search, where there are hints: of the largest, times variables."""

MAX_SEARCHES = 3

MAX_STEPS = 1_000_000
"""Choices that such a search keeps, times variables."""


class OutOfMemory(ValueError):
    """No choice keeps to the memory cap.

    least_bytes: what is needed at least.
    memory_cap: what there is.
    """

    def __init__(self, least_bytes: int | float, memory_cap: int | float) -> None:
        self.least_bytes, self.memory_cap = least_bytes, memory_cap
        super().__init__(
            f"memory_cap: expected at least {least_bytes:.0f} bytes, got {memory_cap:.0f}, which "
            f"is {least_bytes - memory_cap:.0f} too few; "
            "use more ranks or hold fewer microbatches"
        )


class Point(NamedTuple):
    """A choice of labels, what it takes and what it holds."""

    seconds: float
    bytes: float
    labels: tuple[int, ...]


def with_memory(
    problem: Problem,
    memory_cap: int | float,
    *,
    hints: Hints | None = None,
    sweeps: int = SWEEPS,
    max_ways: int = MAX_WAYS,
    max_entries: int | float = MAX_ENTRIES,
    cache: TableCache | None = None,
) -> Minimum:
    """One label for every variable at least cost, the bytes of all within ``memory_cap``.

    A price on each byte is raised and lowered until it is the one at which choices change from
    too large to small enough: that bounds the cost from below, exactly but for the gap between
    neighbouring choices, which a search closes.

    Args:
        hints: how labels and variables hang together.
        sweeps: as in ``minimise``.
        max_ways: choices that the search keeps at a time.
        max_entries: of the largest table.

    Raises:
        OutOfMemory: nothing keeps to the cap.

    Reference:
        Everett, "Generalized Lagrange multiplier method for solving problems of optimum
        allocation of resources", 1963; Handler and Zang, "A dual algorithm for the constrained
        shortest path problem", 1980.
    """
    cache = cache or TableCache()
    dual = None if hints is None else dual_of(problem, hints)

    def least(priced: Problem, start: tuple[int, ...] | None) -> Minimum:
        return minimise(
            priced,
            hints=hints,
            start=start,
            sweeps=sweeps,
            max_entries=max_entries,
            cache=cache,
            dual=dual,
        )

    free = least(problem, None)
    if problem.bytes(free.labels) <= memory_cap:
        return free
    smallest = least(problem.only_memory(), free.labels)
    if smallest.seconds > memory_cap:
        raise OutOfMemory(smallest.bound, memory_cap)
    memory_cap = _reachable(problem, memory_cap)
    over, under = _point(problem, free), _point(problem, smallest)
    bound, price = free.bound, 0.0
    for _ in range(MAX_PRICES):
        now = (under.seconds - over.seconds) / (over.bytes - under.bytes)
        if not now > 0:
            break
        found = least(problem.priced(now), under.labels)
        if found.bound - now * memory_cap > bound:
            bound, price = found.bound - now * memory_cap, now
        point = _point(problem, found)
        line = over.seconds + now * over.bytes
        if found.seconds >= line - EXACT * abs(line):
            break
        if point.bytes > memory_cap:
            over = point
        else:
            under = point
    under = _cross(problem, over, under, memory_cap)
    bound = min(bound, under.seconds)
    if under.seconds - bound <= EXACT * abs(bound):
        return Minimum(under.labels, under.seconds, under.seconds)
    for _ in range(MAX_SEARCHES if dual else 1):  # a better choice leaves less to search through
        searched = _searched(
            problem,
            dual,
            hints,
            memory_cap,
            price,
            under.seconds,
            max_ways=max_ways,
            max_entries=max_entries,
            cache=cache,
        )
        if searched.labels is not None:
            under = Point(problem.value(searched.labels), 0.0, searched.labels)
        bound = min(max(bound, searched.bound), under.seconds)
        if searched.labels is None or under.seconds - bound <= EXACT * abs(bound):
            break
    return Minimum(under.labels, under.seconds, bound)


def _searched(
    problem: Problem,
    dual: FanDual | None,
    hints: Hints | None,
    memory_cap: int | float,
    price: int | float,
    least: float,
    *,
    max_ways: int,
    max_entries: int | float,
    cache: TableCache,
) -> Found:
    """``best_within`` of the labels that a better choice may have."""
    if hints is None or dual is None:
        limits = {"max_ways": max_ways, "max_entries": max_entries, "cache": cache}
        return best_within(problem, memory_cap, price, least, **limits)
    max_ways = min(max_ways, MAX_STEPS // len(problem.seconds))
    max_entries = min(max_entries, PART_ENTRIES // len(problem.seconds))
    dual.reprice(problem.priced(price).seconds)
    for _ in range(PRICED_SWEEPS):
        dual.sweep()
    parts, limit = Parts(problem, hints.copies), least + price * memory_cap
    near = parts.near(dual.least, dual.bound, limit, max_entries)
    if near is None:
        return Found(None, -np.inf)
    keep, all_of_them = near
    part = parts.of(problem, keep)
    found = best_within(
        part,
        memory_cap,
        price,
        least,
        max_ways=max_ways,
        max_entries=max_entries,
        cache=cache,
    )
    labels = None if found.labels is None else whole(keep, found.labels)
    return Found(labels, found.bound if all_of_them else dual.bound - price * memory_cap)


def _reachable(problem: Problem, memory_cap: int | float) -> float:
    """The largest memory up to the cap that whole steps from label to label can come to."""
    tables = [*{id(table): table for table in problem.memory}.values()]
    if not all((table == np.round(table)).all() for table in tables):
        return float(memory_cap)
    first = sum(int(table[0]) for table in problem.memory)
    step = int(
        np.gcd.reduce(np.concatenate([table - table[0] for table in tables]).astype(np.int64))
    )
    return float(first + (memory_cap - first) // step * step) if step else float(memory_cap)


def _point(problem: Problem, found: Minimum) -> Point:
    return Point(problem.value(found.labels), problem.bytes(found.labels), found.labels)


def _cross(problem: Problem, over: Point, under: Point, memory_cap: int | float) -> Point:
    """The quickest that fits of those with the first labels of one choice and the last of the
    other: equal blocks may be some so and some so."""
    best, count = under, len(under.labels)
    step = max(1, count // 64)
    for at in range(step, count, step):
        for first, last in ((over, under), (under, over)):
            labels = (*first.labels[:at], *last.labels[at:])
            if problem.bytes(labels) <= memory_cap:
                seconds = problem.value(labels)
                if seconds < best.seconds:
                    best = Point(seconds, problem.bytes(labels), labels)
    return best
