"""``closed_formula``: the partition with the least formula, exactly. Needs numpy, no torch."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.formula import Formula
from blocks.pipeline.inter_op.priced import Stage, least_option
from blocks.pipeline.inter_op.relaxed import Relaxed
from blocks.pipeline.inter_op.suffixes import Suffixes, prefixes, suffixes

NARROW = 0.02
"""Intervals of caps narrower than this share are walked down, wider ones are halved."""

Plan = tuple[Stage, ...]


class Choice(NamedTuple):
    """Stages and what the formula says of them."""

    stages: Plan
    total_s: float
    wait_s: float
    seconds: float


class Found(NamedTuple):
    """Plans met on the way, the best first, and what no plan comes below."""

    choices: tuple[Choice, ...]
    bound_s: float
    num_caps: int


def closed_formula(
    formula: Formula,
    budget: Budget,
    *,
    epsilon: int | float = 0.0,
    max_stages: int | None = None,
    known: Iterable[Plan] = (),
    below: int | float = float("inf"),
    enough: int | float = 0.0,
) -> Found:
    """The plan with the least ``total + wait`` over all partitions that fit.

    For every cap on the wait the least total is a program (``suffixes``). Caps are tried from both
    sides: totals fall as caps rise, so nothing between two caps beats the total of the upper one
    with the wait of the lower one. What is left out is proven no better than ``1 - epsilon`` of the
    answer. The wait for round trips is part of the cap: the least total of a suffix is its least
    trip, so stages whose trip is too long even then are left out.

    Args:
        epsilon: share by which the answer may miss the least; 0 is exact.
        max_stages: most stages of a plan.
        known: plans that fit, to start from.
        below: plans at least this long are of no interest.
        enough: a bound that will do where it is above that of ``epsilon``.

    Reference: Zheng et al. 2022, Alpa, section 5.2, equations 2 to 5 and algorithm 1, whose caps
    ascend and are stage times alone.
    """
    import numpy as np

    search = _Search(formula, budget, max_stages or len(formula.priced.table.bounds) - 1, below)
    for plan in known:
        search.meet(plan)

    def goal() -> float:
        """Plans at least this long are left out."""
        return max(search.best_s * (1 - epsilon), min(search.best_s, enough))

    bound, intervals = goal(), []
    low, high = search.relaxed.narrow(bound)
    top = search.at(high, low) if low < np.inf else None
    if top is not None:
        intervals.append((low, min(high, top.wait_s), top.total_s))
    while intervals:
        # Plans with a wait in [low, high) have a total of at least ``total``.
        low, high, total = intervals.pop()
        left_out = goal()
        if left_out - total < high:
            bound = min(bound, max(left_out, total + low))
            high = left_out - total
        if high <= low:
            continue
        wide = high - low > NARROW * high
        cap = (low + high) / 2 if wide else float(np.nextafter(high, 0))
        choice = search.at(cap, low)
        if wide:
            intervals.append((cap, high, total))  # the cap itself counts as above, too
        if choice is not None:
            wait = min(choice.wait_s, float(np.nextafter(cap, 0)))
            if wait > low:
                intervals.append((low, wait, choice.total_s))
    choices = sorted(search.choices.values(), key=lambda choice: choice.seconds)
    return Found(tuple(choices), min(bound, search.best_s), search.num_caps)


class _Search:
    """Least totals under caps, with the plans found kept."""

    def __init__(
        self, formula: Formula, budget: Budget, max_stages: int, below: int | float
    ) -> None:
        self.formula, self.budget, self.max_stages = formula, budget, max_stages
        self.best_s, self.num_caps = float(below), 0
        self.choices: dict[Plan, Choice] = {}
        self._waits: dict[int, Any] = {}
        self.relaxed = Relaxed(formula, budget, max_stages)

    @functools.cached_property
    def _before(self) -> Any:
        """Least seconds of the layers before a suffix, ``[k, u]``; stages come after them."""
        least = self.formula.priced.least(self.formula.adds(2), 2)
        return prefixes(least, self.formula.hops, self.budget)

    def meet(self, plan: Plan) -> Choice:
        """Keep a plan."""
        total, wait = self.formula.parts(plan)
        choice = self.choices[plan] = Choice(plan, total, wait, total + wait)
        self.best_s = min(self.best_s, choice.seconds)
        return choice

    def at(self, cap: int | float, low: int | float = 0.0) -> Choice | None:
        """The plan with the least total whose wait is at most ``cap``.

        None where there is none, or none that is better than the best one met: none has a wait
        below ``low``.
        """
        import numpy as np

        formula, priced = self.formula, self.formula.priced
        self.num_caps += 1
        useful = self._useful(low)

        def costs(to_end: int) -> tuple[Any, None]:
            return self._costs(to_end, cap), None

        able = self._able(cap)
        budget, states = self.budget.only(able)

        found = suffixes(
            costs,
            formula.hops,
            budget,
            self.max_stages,
            limit=lambda to_end: useful[:, states],
            room=lambda to_end, step: self._room(to_end, cap, step, formula.passes(step)),
        )
        depths: Sequence[int] = range(1, len(found.value))
        if priced.depth is not None:
            depths = [depth for depth in depths if depth == priced.depth]

        def row(to_end: int, k: int, m: int) -> tuple[Any, None]:
            at = k, slice(None), m
            allowed = self._wait(to_end)[at] <= cap
            return np.where(allowed, formula.adds(to_end)[at], np.inf), None

        def room(to_end: int, k: int, m: int, step: Any) -> Any:
            passes = step
            if k == 0 and formula.first_s is not None:
                passes = np.broadcast_to(formula.first_s[:, m, None], step.shape)
            return self._room(to_end, cap, step, passes)

        least, least_s = None, np.inf
        for depth in depths:
            total = found.ends(depth).min(initial=np.inf)
            if total == np.inf or total + low >= max(self.best_s, least_s):
                continue
            stages = trace(found, row, formula.hops, depth, room=room)
            choice = self.meet(stages)
            if choice.total_s < least_s:
                least, least_s = choice, choice.total_s
        return least

    def _costs(self, to_end: int, cap: int | float) -> Any:
        """What stages add whose wait is at most ``cap``, ``[k, i, m]``."""
        import numpy as np

        allowed = self._wait(to_end) <= cap
        return least_option(np.where(allowed, self.formula.adds(to_end), np.inf))

    def _room(self, to_end: int, cap: int | float, adds: Any, passes: Any) -> Any:
        """The largest values of suffixes whose first trip keeps to the cap; None for all."""
        if not self.formula.trips(to_end):
            return None
        return self.formula.room(to_end, cap, adds, passes)

    def _wait(self, to_end: int) -> Any:
        """Of the stages that fit; others are below no cap, not even an infinite one."""
        import numpy as np

        if to_end not in self._waits:
            waits, fits = self.formula.waits(to_end), self.formula.priced.fits(to_end)
            self._waits[to_end] = np.where(fits, waits, np.nan)
        return self._waits[to_end]

    def _able(self, cap: int | float) -> list[bool]:
        """Which shapes have a stage that keeps to the cap, at whatever distance from the end.

        Waits and bytes rise or fall with the distance, so its ends are enough.
        """
        import numpy as np

        formula, priced = self.formula, self.formula.priced
        if priced.depth is not None and self.max_stages > 1:
            return [True] * len(self.budget.shapes)
        waits = np.minimum(formula.waits(1), formula.waits(self.max_stages))
        return (priced.fits(1) & (waits <= cap)).any(axis=(0, 1, 3)).tolist()

    def _useful(self, low: int | float) -> Any:
        """Seconds a suffix may add to be part of a better plan, ``[k, u]``; a hair more."""
        import numpy as np

        if self.best_s == np.inf:
            return np.where(np.isfinite(self._before), np.inf, -np.inf)
        return self.best_s * (1 + 1e-12) - low - self._before


def trace(found: Suffixes, row: Any, send: Any, depth: int, *, room: Any = None) -> Plan:
    """The stages of the least value with ``depth`` stages.

    Args:
        row: ``step`` and ``head`` (or None) by option, ``[i, o]``, of stages to the end, first
            bound and shape.
        room: what values may be at most (or None), of these and ``step``.
    """
    import numpy as np

    budget = found.budget
    ends = found.ends(depth)
    m, end = np.unravel_index(int(ends.argmin()), ends.shape)
    k, m, u = 0, int(m), int(budget.ends[end])
    stages = []
    for to_end in range(depth, 0, -1):
        step, head = row(to_end, k, m)
        u = int(budget.before[m][u])
        reached = step + found.after[to_end - 1][m, :, u][:, None]  # [i, o]
        if head is not None:
            reached = np.maximum(reached, head)
        most = None if room is None else room(to_end, k, m, step)
        if most is not None:
            reached = np.where(reached <= most, reached, np.inf)
        i, option = (int(x) for x in np.unravel_index(int(reached.argmin()), reached.shape))
        stages.append((k, i, m, option))
        if to_end > 1:
            m = int((send[i, m] + found.value[to_end - 1][:, i, u]).argmin())
        k = i
    return tuple(stages)
