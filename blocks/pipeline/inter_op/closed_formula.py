"""``closed_formula``: plans by the sum and the slowest of their stages, least first.

Needs numpy, no torch.
"""

from typing import Any, NamedTuple

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.priced import Priced, Stage
from blocks.pipeline.inter_op.suffixes import Suffixes, prefixes, suffixes

NARROW = 0.02
"""Intervals of caps narrower than this share are walked down, wider ones are halved."""


class Choice(NamedTuple):
    """Stages and what the formula says of them."""

    stages: tuple[Stage, ...]
    total_s: float
    pace_s: float
    formula_s: float


class Found(NamedTuple):
    """Plans met on the way, the best first, and what no plan comes below."""

    choices: tuple[Choice, ...]
    bound_s: float
    num_caps: int


def closed_formula(
    priced: Priced,
    budget: Budget,
    *,
    epsilon: int | float = 0.0,
    max_stages: int | None = None,
) -> Found:
    """The plan with the least ``total + (B - 1) pace`` for ``B`` microbatches.

    *total* is the time of one microbatch through all stages and the transfers between them, the
    share of a step's once-only work included; *pace* the time between two microbatches: that of the
    slowest stage, or, under 1F1B, of a round trip from a stage to the end and back divided by the
    microbatches the stage holds, which is slower where transfers are. Where backwards are split,
    all stages but the last add ``t - 2w`` to the total: their weight gradients fill the bubble.

    For every cap on the pace the least total is a program (``suffixes``). Caps are tried from both
    sides: totals fall as caps rise, so nothing between two caps beats the total of the upper one
    with the pace of the lower one. What is left out is proven no better than ``1 - epsilon`` of the
    answer. The round trip is part of the cap at no price: the least total of a suffix is its trip.

    Reference: Zheng et al. 2022, Alpa, section 5.2, equations 2 to 5 and algorithm 1, whose caps
    ascend and are stage times alone.
    """
    import numpy as np

    search = _Search(priced, budget, max_stages or len(priced.table.bounds) - 1)
    rest = priced.count - 1
    top = search.at(np.inf)
    if top is None:
        return Found((), float("inf"), search.num_caps)
    bound = float("inf")
    intervals = [(0.0, top.pace_s, top.total_s)]
    while intervals:
        # Plans with a pace in [low, high) have a total of at least ``total``.
        low, high, total = intervals.pop()
        best = search.best_s * (1 - epsilon)
        if total + rest * low >= best:
            bound = min(bound, total + rest * low)
            continue
        if rest:
            usable = (best - total) / rest
            if usable < high:
                bound = min(bound, total + rest * max(usable, low))
                high = usable
        if high <= low:
            continue
        wide = high - low > NARROW * high
        cap = (low + high) / 2 if wide else float(np.nextafter(high, 0))
        choice = search.at(cap, low)
        if wide:
            intervals.append((cap, high, total))  # and at the cap itself, which counts as above
        if choice is None:
            continue
        pace = min(choice.pace_s, float(np.nextafter(cap, 0)))
        if pace > low:
            intervals.append((low, pace, choice.total_s))
    choices = sorted(search.choices.values(), key=lambda choice: choice.formula_s)
    return Found(tuple(choices), min(bound, search.best_s), search.num_caps)


class _Search:
    """Least totals under caps, with the plans found kept."""

    def __init__(self, priced: Priced, budget: Budget, max_stages: int) -> None:
        self.priced, self.budget, self.max_stages = priced, budget, max_stages
        self.best_s, self.num_caps = float("inf"), 0
        self.choices: dict[tuple[Stage, ...], Choice] = {}
        loosest = priced.least(priced.through_s, 1)
        self._before = prefixes(loosest, priced.hops_s, budget)

    def at(self, cap: int | float, low: int | float = 0.0) -> Choice | None:
        """The plan with the least total whose pace is at most ``cap``.

        None where there is none, or none that is better than the best one met: none has a pace
        below ``low``.
        """
        import numpy as np

        priced, self.num_caps = self.priced, self.num_caps + 1
        options: dict[int, Any] = {}

        def costs(to_end: int) -> tuple[Any, None]:
            options[to_end] = priced.through(to_end, cap)
            return options[to_end].min(axis=-1), None

        def limit(to_end: int) -> Any:
            useful = self._useful(low)
            if priced.paced_by_trips:
                np.minimum(useful, to_end * cap, out=useful)
            return useful

        found = suffixes(costs, priced.hops_s, self.budget, self.max_stages, limit=limit)
        depths = range(1, len(found.value))
        if priced.depth is not None:
            depths = [depth for depth in depths if depth == priced.depth]
        least, least_s, rest = None, np.inf, priced.count - 1
        for depth in depths:
            total = found.ends(depth).min(initial=np.inf)
            if total == np.inf or total + rest * low >= max(self.best_s, least_s):
                continue
            stages = trace(found, costs_of(options), priced.hops_s, depth)
            total, pace = priced.total_and_pace(stages)
            choice = Choice(stages, total, pace, total + (priced.count - 1) * pace)
            self.choices[stages] = choice
            self.best_s = min(self.best_s, choice.formula_s)
            if choice.total_s < least_s:
                least, least_s = choice, choice.total_s
        return least

    def _useful(self, low: int | float) -> Any:
        """Seconds a suffix may add to be part of a better plan, ``[k, u]``; a hair more."""
        import numpy as np

        if self.best_s == np.inf:
            return np.where(np.isfinite(self._before), np.inf, -np.inf)
        return self.best_s * (1 + 1e-12) - (self.priced.count - 1) * low - self._before


def costs_of(options: dict[int, Any]) -> Any:
    """``step`` by option, from a dictionary by number of stages."""
    return lambda to_end: (options[to_end], None)


def trace(found: Suffixes, costs: Any, send: Any, depth: int) -> tuple[Stage, ...]:
    """The stages of the least value with ``depth`` stages.

    Args:
        costs: ``step`` and ``head`` (or None) by option, ``[k, i, m, o]``.
    """
    import numpy as np

    budget = found.budget
    ends = found.ends(depth)
    m, end = np.unravel_index(int(ends.argmin()), ends.shape)
    k, m, u = 0, int(m), int(budget.ends[end])
    stages = []
    for to_end in range(depth, 0, -1):
        step, head = costs(to_end)
        u = int(budget.before[m][u])
        reached = step[k, :, m] + found.after[to_end - 1][m, :, u][:, None]  # [i, o]
        if head is not None:
            reached = np.maximum(reached, head[k, :, m])
        i, option = (int(x) for x in np.unravel_index(int(reached.argmin()), reached.shape))
        stages.append((k, i, m, option))
        if to_end > 1:
            m = int((send[i, m] + found.value[to_end - 1][:, i, u]).argmin())
        k = i
    return tuple(stages)
