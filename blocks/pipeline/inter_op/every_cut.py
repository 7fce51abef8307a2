"""``EveryCut``: what no partition comes below, wherever stages are cut. Needs numpy, no torch."""

import heapq
from collections.abc import Sequence
from typing import Any, NamedTuple

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.cut_windows import HAIR, CutWindows
from blocks.pipeline.inter_op.layer_sums import LayerSums
from blocks.pipeline.inter_op.stage_table import transfers

MAX_PRICES = 6
"""Prices of a device looked at; any of them gives a bound."""

MAX_CAPS = 60
"""Caps looked at in all; fewer give a bound, too."""

CLOSE = 1e-4
"""Share to which the least cap is found."""


class CutPlan(NamedTuple):
    """Stages ``(first, stop, shape, option)`` by layers, what they add, and their devices."""

    stages: tuple[tuple[int, int, int, int], ...]
    seconds: float
    devices: int


class EveryCut:
    """A bound on the steps of all partitions of many layers whose costs add up.

    No step is shorter than ``total + wait`` of ``trip_bound``: the way of one microbatch through
    all stages and back, and what the slowest stage makes the others wait. For every cap on the wait
    the least total is a program over layers and the number of stages to the end,

        value[s, m, k] = min over ends i in the window of k of
                         seconds[m, i] - seconds[m, k] + price devices[m] + after[s-1, m, i]

    whose windows (``CutWindows``) are those of stages that fit and keep to the cap. The least over a
    window is that of two windows whose lengths are powers of two, so a pass over all cuts takes
    ``layers log(layers)``, not the square of the layers. Devices have a price, as in ``Relaxed``:
    at any price the least is a bound. Totals fall as caps rise, so plans with a wait between two
    caps have at least the total of the upper one and the wait of the lower one; caps are halved
    where that is least. Below the first cap at which the devices are enough for all layers
    (``least_cap``, exact in the number of devices), there is no plan.
    """

    def __init__(
        self,
        sums: LayerSums,
        schedule: str,
        num_microbatches: int,
        caps: Sequence[int | float],
        budget: Budget,
        max_stages: int,
    ) -> None:
        import numpy as np

        self.windows = CutWindows(sums, schedule, num_microbatches, caps)
        self.rows, self.budget = self.windows.rows, budget
        self.alike = schedule == "one_f_one_b"
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
        self.plans: list[CutPlan] = []

    def bound(self, enough: float) -> float:
        """What no plan comes below; no more than ``enough``, where it stops to look."""
        high = enough - self._total(self._at(enough), enough)
        low = self.least_cap(high)
        if low > high:
            return enough
        total = self._total(self._at(high), enough - low)
        intervals = [(total + low, low, high, total)]
        while intervals[0][0] < enough and self.num_caps < MAX_CAPS:
            _, low, high, total = heapq.heappop(intervals)
            middle = (low + high) / 2
            below = self._total(self._at(middle), enough - low)
            heapq.heappush(intervals, (below + low, low, middle, below))
            heapq.heappush(intervals, (total + middle, middle, high, total))
        return min(enough, intervals[0][0])

    def least_cap(self, high: float) -> float:
        """A wait that no plan is below, and nearly one has, by memory and the number of devices;
        more than ``high`` where all are."""
        if not self._enough_devices(high):
            return high * (1 + CLOSE)
        low = 0.0
        while high - low > CLOSE * high:
            middle = (low + high) / 2
            if self._enough_devices(middle):
                high = middle
            else:
                low = middle
        return low

    def _enough_devices(self, cap: float) -> bool:
        """Whether stages within a cap come from the last layer to the first.

        The earliest layer that so many stages on so many devices come to is found from the one
        that fewer stages on fewer devices come to: what begins later is no further.
        """
        import numpy as np

        nowhere = self.windows.num_layers + 1
        first = np.full(self.devices + 1, nowhere)
        first[0] = self.windows.num_layers
        for ends in self._at(cap):
            then = np.full(self.devices + 1, nowhere)
            for row, last in zip(self.rows, ends, strict=True):
                before = first[: self.devices + 1 - row.devices]
                reached = np.searchsorted(last, before)
                reached = np.where(before < nowhere, np.minimum(reached, before), nowhere)
                at = then[row.devices :]
                np.minimum(at, reached, out=at)
            first = then
            if (first[-1] if self.budget.whole else first.min()) == 0:
                return True
        return False

    def _at(self, cap: float) -> list[Any]:
        """Windows by stages to the end."""
        self.num_caps += 1
        return [self.windows.within(n, cap) for n in range(1, self.max_stages + 1)]

    def _total(self, every: list[Any], enough: float) -> float:
        """The least that plans of these windows add; no more is looked for than ``enough``."""
        program = _Program(self, every)
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
                self.plans.append(plan)
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


class _Program:
    """The program over the windows of every number of stages to the end."""

    def __init__(self, of: EveryCut, every: list[Any]) -> None:
        import numpy as np

        self.of, self.every = of, every
        num_rows, num_bounds = of.whole.shape
        longest = max(int((ends - np.arange(num_bounds - 1)).max()) for ends in every)
        levels = max(1, longest).bit_length()
        self.tables = np.full((levels, num_rows, num_bounds), np.inf)
        self.picks = [self._pick(ends) for ends in every]

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
        afters, values, firsts = [after], [], []
        for ends, picks in zip(self.every, self.picks, strict=True):
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
            values.append(value)
            afters.append(after)
        depth = int(np.argmin(firsts))
        if firsts[depth] == np.inf:
            return None
        return self._trace(depth + 1, paid[:, 0], afters)

    def _trace(self, depth: int, paid: Any, afters: list[Any]) -> CutPlan:
        """The stages of the least plan of so many."""
        import numpy as np

        of, k, before, total, devices = self.of, 0, -1, 0.0, 0
        stages = []
        for to_end in range(depth, 0, -1):
            least, found = np.inf, (0, 0)
            ends = self.every[to_end - 1][:, k]
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
