"""``EveryCut``: what no partition comes below, wherever stages are cut. Needs numpy, no torch."""

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.closed_formula import Plan
from blocks.pipeline.inter_op.cut_windows import HAIR, CutWindows
from blocks.pipeline.inter_op.formula import trip_bound
from blocks.pipeline.inter_op.layer_sums import LayerSums
from blocks.pipeline.inter_op.priced import Priced
from blocks.pipeline.inter_op.stage_table import transfers

MAX_PRICES = 6
"""Prices of a device looked at; any of them gives a bound."""

MAX_CAPS = 40
"""Caps looked at in all; fewer give a bound, too."""

FAR = 0.9
"""Share of an interval of caps beyond which what is left of it is halved."""


class CutPlan(NamedTuple):
    """Stages ``(first, stop, shape, option)`` by layers, what they add, and their devices."""

    stages: tuple[tuple[int, int, int, int], ...]
    seconds: float
    devices: int


class Bounded(NamedTuple):
    """A bound; and the best plan met on the way: its cuts, and its stages by their indices."""

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
    wanted: float,
    tolerance: float = 0.0,
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
    devices = sum(budget.counts.values())
    fewest = min(shape.size for shape in sums.shapes)
    able = [shape.size <= devices - fewest for shape in sums.shapes]
    windows = CutWindows(sums, schedule, num_microbatches, caps, able)
    if min(max_stages, sums.num_layers) < 2 or not windows.rows:
        return Bounded(found, None)
    asked = EveryCut(sums, windows, budget, max_stages)
    bound = asked.bound(found, tolerance)
    return Bounded(min(found, bound), asked.met)


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
        import numpy as np

        self.windows, self.rows, self.budget = windows, windows.rows, budget
        self.alike, self.count = windows.alike, windows.count
        self.sums, self.num_layers = sums, sums.num_layers
        self.devices = sum(budget.counts.values())
        fewest = min(row.devices for row in self.rows)
        self.max_stages = min(max_stages, self.devices // fewest, sums.num_layers)
        shapes = np.array([row.shape for row in self.rows])
        self.begins = np.flatnonzero(np.diff(shapes, prepend=-1))
        used = shapes[self.begins]
        self.shape_of = np.searchsorted(used, shapes)
        self.sizes = np.array([float(row.devices) for row in self.rows])
        there, back = transfers(range(sums.num_layers + 1), sums.shapes, sums.transfer)
        hops = (there + back)[:, used][:, :, used]
        self.hops = hops.transpose(1, 2, 0)  # [before, after, bound]
        self.whole, self.alone = self.windows.seconds(1, 1)
        self.once = self.windows.upto["once_s"]
        self.once_alone = self.windows.each["once_s"]
        self.price = float(self.whole[:, -1].min()) / self.devices
        self.num_caps = 0
        self.met_s = float("inf")
        self.met: tuple[tuple[int, ...], Plan] | None = None

    def bound(self, wanted: float, tolerance: float) -> float:
        """What no plan comes below; no more than ``wanted`` is looked for."""
        total = self._total(wanted, wanted)
        if self.count == 1:  # there is no wait
            return min(wanted, total)
        intervals = [(total, 0.0, wanted, total)]
        while intervals[0][0] < min(wanted, self.met_s * (1 - tolerance)):
            if self.num_caps == MAX_CAPS:
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

    def _total(self, cap: float, enough: float) -> float:
        """The least that plans within a cap add; no more is looked for than ``enough``."""
        self.num_caps += 1
        windows = [self.windows.within(n, cap) for n in range(1, self.max_stages + 1)]
        program = _Program(self, cap, windows)
        if not program.has_devices():
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
                price = price / 4 if price * self.devices > 1e-3 * plan.seconds else 0.0
            else:
                price = 4 * price - plan.seconds / self.devices
            if price == before:
                break
        return best * (1 - HAIR)

    def _meet(self, plan: CutPlan) -> None:
        """Keep a plan of all devices, if it fits and is the best so far by ``trip_bound``."""
        cuts = (*(stage[0] for stage in plan.stages), self.num_layers)
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


class _Program:
    """The program over the windows under a cap, for prices of devices.

    Under 1F1B the cap is one on trips (``trip_bound``), too: with ``a`` trips from a stage to the
    end and back, and what the stage itself adds for the other microbatches,

        (B - 1 - a p + a) own + a rest <= cap

    for the ``rest`` of the stages after it. At any price the program of those stages says what they
    add at least, with the price for the most devices that stages before leave them; so the stages
    whose ``own`` is too long even then end their windows earlier.
    """

    def __init__(self, of: EveryCut, cap: float, every: list[Any]) -> None:
        import numpy as np

        self.of, self.cap, self.every = of, cap, every
        num_rows, num_bounds = of.whole.shape
        longest = max(int((ends - np.arange(num_bounds - 1)).max()) for ends in every)
        levels = max(1, longest).bit_length()
        self.tables = np.full((levels, num_rows, num_bounds), np.inf)
        self.left = of.devices - self._fewest_before()

    def _fewest_before(self) -> Any:
        """Devices that all layers before a bound need at least, ``[bound]``."""
        import numpy as np

        of, furthest = self.of, np.maximum.reduce(self.every)
        reached = [0]
        for devices in range(1, of.devices + 1):
            at = reached[-1]
            for r, row in enumerate(of.rows):
                if row.devices <= devices:
                    k = reached[devices - row.devices]
                    at = max(at, k if k == of.num_layers else int(furthest[r, k]))
            reached.append(at)
        return np.searchsorted(np.array(reached), np.arange(of.num_layers + 1))

    def _trips(self, to_end: int) -> list[tuple[float, float]]:
        """How often what a stage itself adds is waited for, and what all after it add."""
        of = self.of
        rest, held = of.count - 1, min(to_end, of.count)
        most = rest // held if of.alike else 0
        return [(float(rest - a * held + a), float(a)) for a in sorted({1, most}) if 0 < a <= most]

    def _ends(self, to_end: int, after: Any, price: float) -> Any:
        """Windows that keep to the cap on trips, too.

        after: priced, of the stages that follow, ``[shape, bound]``.
        """
        import numpy as np

        of, ends = self.of, self.every[to_end - 1]
        rest = (after - max(price, 0.0) * self.left)[of.shape_of]
        for own, trips in self._trips(to_end):
            alone = own * of.whole
            sums = np.minimum.accumulate((alone + trips * rest)[:, ::-1], axis=1)[:, ::-1]
            most = alone[:, :-1] + (self.cap - own * of.alone)[:, None]
            most = most + HAIR * (self.cap + alone[:, -1:])
            last = [np.searchsorted(*pair, side="right") for pair in zip(sums, most, strict=True)]
            ends = np.minimum(ends, np.stack(last) - 1)
        return np.maximum(ends, np.arange(of.num_layers))

    def has_devices(self) -> bool:
        """Whether stages within the cap come from the last layer to the first.

        The earliest layer that so many stages on so many devices come to is found from the one
        that fewer stages on fewer devices come to: what begins later is no further.
        """
        import numpy as np

        of, nowhere = self.of, self.of.num_layers + 1
        first = np.full(of.devices + 1, nowhere)
        first[0] = of.num_layers
        for ends in self.every:
            then = np.full(of.devices + 1, nowhere)
            for row, last in zip(of.rows, ends, strict=True):
                before = first[: of.devices + 1 - row.devices]
                reached = np.minimum(np.searchsorted(last, before), before)
                at = then[row.devices :]
                np.minimum(at, np.where(before < nowhere, reached, nowhere), out=at)
            first = then
            if (first[-1] if of.budget.whole else first.min()) == 0:
                return True
        return False

    def _pick(self, ends: Any) -> tuple[Any, Any]:
        """Where in the tables the two halves of every window are; infinity for empty ones."""
        import numpy as np

        _, num_rows, num_bounds = self.tables.shape
        first = np.arange(1, num_bounds)
        length = ends - first + 1
        level = np.frexp(np.maximum(length, 1))[1] - 1
        start = (level * num_rows + np.arange(num_rows)[:, None]) * num_bounds
        empty = length < 1
        return (
            np.where(empty, 0, start + first),  # bound 0 ends no stage
            np.where(empty, 0, start + ends + 1 - 2**level),
        )

    def least(self, price: float) -> CutPlan | None:
        """The plan that adds least, with ``price`` for every device; None where there is none."""
        import numpy as np

        of, tables = self.of, self.tables
        num_bounds = tables.shape[2]
        paid = (of.alone + price * of.sizes)[:, None]
        after = np.full((len(of.begins), num_bounds), np.inf)
        after[:, -1] = 0.0
        afters, windows, firsts = [after], [], []
        for to_end in range(1, len(self.every) + 1):
            ends = self._ends(to_end, after, price)
            windows.append(ends)
            picks = self._pick(ends)
            tables[0] = of.whole + after[of.shape_of]
            tables[0, :, 0] = np.inf
            for level in range(1, len(tables)):
                half = 2 ** (level - 1)
                last = tables[level - 1]
                np.minimum(last[:, :-half], last[:, half:], out=tables[level, :, :-half])
            least = np.minimum(tables.take(picks[0]), tables.take(picks[1]))
            least += paid - of.whole[:, :-1]
            value = np.minimum.reduceat(least, of.begins, axis=0)
            once = tables[0, :, : ends[:, 0].max() + 1] + of.once[:, : ends[:, 0].max() + 1]
            once[np.arange(once.shape[1]) > ends[:, :1]] = np.inf
            firsts.append((once.min(axis=1) + paid[:, 0] + of.once_alone).min())
            after = np.full_like(after, np.inf)
            after[:, :-1] = (of.hops[:, :, :-1] + value[None]).min(axis=1)
            afters.append(after)
        depth = int(np.argmin(firsts))
        if firsts[depth] == np.inf:
            return None
        return self._trace(depth + 1, paid[:, 0], afters, windows)

    def _trace(self, depth: int, paid: Any, afters: list[Any], windows: list[Any]) -> CutPlan:
        """The stages of the least plan of so many."""
        import numpy as np

        of, k, before, total, devices = self.of, 0, -1, 0.0, 0
        stages = []
        for to_end in range(depth, 0, -1):
            least, found = np.inf, (0, 0)
            ends = windows[to_end - 1][:, k]
            for r, last in enumerate(ends.tolist()):
                if last <= k:
                    continue
                span = slice(k + 1, last + 1)
                reached = of.whole[r, span] + afters[to_end - 1][of.shape_of[r], span]
                hop = 0.0
                if before < 0:
                    reached = reached + of.once[r, span] + of.once_alone[r]
                else:
                    hop = of.hops[before, of.shape_of[r], k]
                i = int(reached.argmin())
                value = float(reached[i] - of.whole[r, k] + paid[r] + hop)
                if value < least:
                    least, found = value, (r, k + 1 + i)
            r, i = found
            total += float(of.whole[r, i] - of.whole[r, k] + of.alone[r])
            if before < 0:
                total += float(of.once[r, i] + of.once_alone[r])
            else:
                total += float(of.hops[before, of.shape_of[r], k])
            row = of.rows[r]
            stages.append((k, i, row.shape, row.option))
            devices += row.devices
            k, before = i, int(of.shape_of[r])
        return CutPlan(tuple(stages), total, devices)
