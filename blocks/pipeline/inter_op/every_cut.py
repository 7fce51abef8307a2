"""``EveryCut``: what no partition comes below, wherever stages are cut. Needs numpy, no torch."""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.closed_formula import Plan
from blocks.pipeline.inter_op.cut_program import CutCosts, CutPlan, CutProgram
from blocks.pipeline.inter_op.cut_windows import HAIR, CutWindows
from blocks.pipeline.inter_op.formula import trip_bound
from blocks.pipeline.inter_op.layer_sums import LayerSums
from blocks.pipeline.inter_op.priced import Priced

MAX_PRICES = 6
"""Prices of a device looked at; any of them gives a bound."""

LEAST_CAPS, MAX_CAPS = 4, 40
"""Caps looked at in all; fewer give a bound, too."""

EFFORT = 30_000_000
"""Numbers of stages times ways to run them times layers that are looked at for all caps."""

FAR = 0.9
"""Share of an interval of caps beyond which what is left of it is halved."""


class Bounded(NamedTuple):
    """A bound; and the best plan met on the way whose own bound is below what was wanted: its
    cuts, and its stages by their indices."""

    bound_s: float
    plan: tuple[tuple[int, ...], Plan] | None


def every_cut(
    sums: LayerSums,
    schedule: str,
    num_microbatches: int,
    caps: Sequence[int | float],
    budget: Budget,
    max_stages: int,
    *,
    wanted: int | float,
    tolerance: int | float = 0.0,
) -> Bounded:
    """What no partition's step comes below, wherever its stages are cut, and plans near it.

    Args:
        sums: costs of layers.
        schedule: a name of ``FLOWS`` whose memory does not depend on the number of all stages.
        num_microbatches: of a step.
        caps: bytes of a device, for every shape.
        budget: devices.
        max_stages: most stages of a plan.
        wanted: no more than that is looked for.
        tolerance: share by which the bound may be below the best plan met.
    """
    found = min(wanted, _one_stage(sums, schedule, num_microbatches, caps, budget))
    windows = CutWindows.of_several_stages(sums, schedule, num_microbatches, caps, budget)
    if min(max_stages, sums.num_layers) < 2 or not windows.rows:
        return Bounded(found, None)
    asked = EveryCut(sums, windows, budget, max_stages)
    bound = asked.bound(found, tolerance)
    return Bounded(min(found, bound), asked.met if asked.met_s < wanted else None)


def _one_stage(
    sums: LayerSums,
    schedule: str,
    num_microbatches: int,
    caps: Sequence[int | float],
    budget: Budget,
) -> float:
    """Of plans of one stage; infinity where there is none."""
    devices = sum(budget.counts.values())
    priced = Priced(sums.at((0, sums.num_layers)), schedule, num_microbatches, caps)
    formula, fits = trip_bound(priced), priced.fits(1)
    assert formula is not None, "its memory is known"
    found = float("inf")
    for m, shape in enumerate(sums.shapes):
        if shape.size == devices or not budget.whole:
            for o in range(len(sums.options)):
                if fits[0, 1, m, o]:
                    found = min(found, formula.seconds([(0, 1, m, o)]))
    return found


class EveryCut:
    """A bound on the steps of all partitions of layers whose costs add up, into two or more stages.

    No step is shorter than ``total + wait`` of ``trip_bound``: the way of one microbatch through
    all stages and back, and what the slowest stage makes the others wait. For every cap on the wait
    the least total is a program over layers and the number of stages to the end,

        value[s, m, k] = min over ends i in the window of k of
                         seconds[m, i] - seconds[m, k] + price devices[m] + after[s-1, m, i]

    whose windows (``CutWindows``) are those of stages that fit and keep to the cap. The least over
    a window is that of two windows whose lengths are powers of two, so a pass over all cuts takes
    ``layers log(layers)``, not the square of the layers. Devices have a price, as in ``Relaxed``:
    at any price the least is a bound. Totals fall as caps rise, so plans with a wait between two
    caps have at least the total of the upper one and the wait of the lower one; caps are halved
    where that is least. Under caps at which the devices are not enough for all layers there is no
    plan (``has_devices``, exact in the number of devices).

    Reference: Zheng et al. 2022, Alpa, section 5.2, of caps; Everett 1963, Generalized Lagrange
    multiplier method, of prices.
    """

    def __init__(
        self, sums: LayerSums, windows: CutWindows, budget: Budget, max_stages: int
    ) -> None:
        self.windows, self.sums, self.budget = windows, sums, budget
        self.costs = CutCosts(sums, windows, budget)
        self.devices, self.count = self.costs.devices, windows.count
        self.max_stages = windows.most_stages(max_stages, budget)
        cells = self.max_stages * self.costs.whole.size
        self.max_caps = max(LEAST_CAPS, min(MAX_CAPS, EFFORT // cells))
        self.price = float(self.costs.whole[:, -1].min()) / self.devices
        self.num_caps = 0
        self.met_s = float("inf")
        self.met: tuple[tuple[int, ...], Plan] | None = None

    def bound(self, wanted: int | float, tolerance: int | float) -> float:
        """What no plan comes below; no more than ``wanted`` is looked for."""
        total = self._total(wanted, wanted)
        if self.count == 1:  # there is no wait
            return min(wanted, total)
        intervals = [(total, 0.0, wanted, total)]
        while intervals[0][0] < min(wanted, self.met_s * (1 - tolerance)):
            if self.num_caps >= self.max_caps:
                break
            _, low, high, total = heapq.heappop(intervals)
            # Plans with a wait in [low, high) have at least this total: only lower waits matter.
            rest = min(high, wanted - total)
            cap = rest if rest - low < FAR * (high - low) else (low + rest) / 2
            below = self._total(cap, wanted - low)
            heapq.heappush(intervals, (below + low, low, cap, below))
            if cap < rest:
                heapq.heappush(intervals, (total + cap, cap, rest, total))
        return min(wanted, intervals[0][0])

    def _total(self, cap: int | float, enough: int | float) -> float:
        """The least that plans within a cap add; no more is looked for than ``enough``."""
        self.num_caps += 1
        windows = [self.windows.within(n, cap) for n in range(1, self.max_stages + 1)]
        program = CutProgram(self.costs, cap, windows)
        if not program.has_devices(whole=self.budget.whole):
            return float("inf")
        price, best = self.price, 0.0
        few: tuple[float, CutPlan] | None = None
        many: tuple[float, CutPlan] | None = None
        for _ in range(MAX_PRICES):
            plan = program.least(price)
            if plan is None:
                return float("inf")
            over = plan.devices - self.devices
            worth = plan.seconds + price * over
            if worth > best:
                best, self.price = worth, price
            if over == 0:
                self._meet(plan)
            idle = over < 0 and price == 0.0 and not self.budget.whole
            if over == 0 or idle or best >= enough:
                break
            few, many = ((price, plan), many) if over < 0 else (few, (price, plan))
            before = price
            if few and many:
                lines = many[1].devices - few[1].devices
                price = (few[1].seconds - many[1].seconds) / lines
                if not many[0] < price < few[0]:
                    break
            elif over > 0:
                price = 2 * abs(price) + plan.seconds / self.devices
            elif price > 0:
                price = 0.0
            else:
                price = 4 * price - plan.seconds / self.devices
            if price == before:
                break
        return best * (1 - HAIR)

    def _meet(self, plan: CutPlan) -> None:
        """Keep a plan of as many devices as there are, if it fits, on those of every kind too, and
        is the best so far by ``trip_bound``."""
        if not self.budget.is_enough(stage[2] for stage in plan.stages):
            return
        cuts = (*(stage[0] for stage in plan.stages), self.sums.num_layers)
        windows = self.windows
        table = self.sums.at(cuts)
        priced = Priced(table, windows.schedule, self.count, windows.shape_caps)
        stages = [(n, n + 1, m, o) for n, (_, _, m, o) in enumerate(plan.stages)]
        to_end = range(len(stages), 0, -1)
        formula = trip_bound(priced)
        assert formula is not None, "its memory is known"
        if all(priced.fits(n)[stage] for n, stage in zip(to_end, stages, strict=True)):
            seconds = formula.seconds(stages)
            if seconds < self.met_s:
                self.met_s, self.met = seconds, (cuts, tuple(stages))
