"""``Relaxed``: the program over stages with devices at a price. Needs numpy, no torch."""

from typing import Any, NamedTuple

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.formula import Formula

MAX_PRICES = 4
"""Prices of a device looked at; any of them gives a bound."""

CLOSE = 0.01
"""Share to which caps are found."""

HAIR = 1e-12
"""Sums of another order differ by less."""


class _Stages(NamedTuple):
    """Stages so many from the end, by first bound: bounds, devices, what they add and what trips
    have of it, their wait."""

    first: Any
    stop: Any
    devices: Any
    adds: Any
    passes: Any
    waits: Any

    def only(self, kept: Any) -> "_Stages":
        """Some of them."""
        return self if kept.all() else _Stages(*(values[kept] for values in self))


class Relaxed:
    """What plans under a cap add at least, without a state for the devices used.

    Instead of using exactly, or at most, the devices there are, a plan pays a price for each of
    them and gets it back for those there are. At any price the least of that is a bound, and the
    plan that has it says whether the price is too low or too high. One pass takes as long as one
    state of the program over stages, layers and devices.

    Args:
        formula: its sums and waits.
        budget: devices; those of several kinds count together.
        max_stages: most stages of a plan.
    """

    def __init__(self, formula: Formula, budget: Budget, max_stages: int) -> None:
        self.formula, self.budget, self.max_stages = formula, budget, max_stages
        self.devices = float(sum(budget.counts.values()))
        self.hops = formula.hops.min(axis=(1, 2))

    def narrow(self, enough: int | float) -> tuple[float, float]:
        """Between which waits plans below ``enough`` are; two infinities where there are none."""
        nowhere = float("inf"), float("inf")
        if enough == float("inf"):
            return 0.0, enough
        high, before = float(enough), float("inf")
        every = self._stages(high)
        while high < before * (1 - CLOSE):
            every = [stages.only(stages.waits <= high) for stages in every]
            total = self._total(every, high)
            before, high = high, min(high, (enough - total) * (1 + HAIR))
            if high < 0.0:
                return nowhere
        low, least = 0.0, high
        while least - low > CLOSE * high:
            middle = (low + least) / 2
            fewer = [stages.only(stages.waits <= middle) for stages in every]
            if self._total(fewer, middle) + low > enough:
                low = middle
            else:
                least = middle
        return low * (1 - HAIR), high

    def _stages(self, cap: float) -> list[_Stages]:
        """By stages to the end, those that fit and keep to the cap."""
        import numpy as np

        formula, priced = self.formula, self.formula.priced
        pairs = np.nonzero(priced.exists.any(axis=(2, 3)))
        sizes = np.array([float(shape.size) for shape in self.budget.shapes])
        found = []
        for to_end in range(1, self.max_stages + 1):
            waits, adds = formula.waits(to_end, pairs), formula.adds(to_end)[pairs]
            kept = priced.fits(to_end)[pairs] & (waits <= cap)
            pair, shape, _ = np.nonzero(kept)
            first, stop = (bounds[pair] for bounds in pairs)
            passes = adds[kept]
            if formula.first_s is not None:
                passes = np.where(first == 0, formula.first_s[stop, shape], passes)
            found.append(_Stages(first, stop, sizes[shape], adds[kept], passes, waits[kept]))
        return found

    def _total(self, every: list[_Stages], cap: float) -> float:
        """A bound on the sum of plans of these stages; infinite if there are none."""
        program = _Program(self, every, cap)
        near = program.least(0.0)
        over = near[1] - self.devices
        if near[0] == float("inf") or over == 0 or (over < 0 and not self.budget.whole):
            return near[0]
        sign = 1.0 if over > 0 else -1.0
        far = program.least(sign, seconds=False)
        if sign * (far[1] - self.devices) > 0:
            return float("inf")  # even the fewest, or the most, devices are not as many
        best = near[0]
        for _ in range(MAX_PRICES):
            price = (far[0] - near[0]) / (near[1] - far[1])
            found = program.least(price)
            best = max(best, found[0] + price * (found[1] - self.devices))
            if found[1] in (near[1], far[1], self.devices):
                break
            near, far = (found, far) if sign * (found[1] - self.devices) > 0 else (near, found)
        return best * (1 - HAIR)


class _Program:
    """The program over some stages; trips that are longer than the cap are left out."""

    def __init__(self, relaxed: Relaxed, every: list[_Stages], cap: float) -> None:
        import numpy as np

        self.hops, self.depth = relaxed.hops, relaxed.formula.priced.depth
        self.rows: list[tuple[_Stages, Any]] = []
        after = self._end()
        for to_end, stages in enumerate(every, 1):
            reached = stages.adds + after[stages.stop]
            kept = np.isfinite(reached)
            if relaxed.formula.trips(to_end):
                room = relaxed.formula.room(to_end, cap, stages.adds, stages.passes)
                kept &= reached <= room * (1 + HAIR)
            stages, reached = stages.only(kept), reached[kept]
            if not len(stages.first):
                break
            begins = np.flatnonzero(np.diff(stages.first, prepend=-1))
            firsts = stages.first[begins]
            self.rows.append((stages, begins))
            after = np.full(len(self.hops), np.inf)
            after[firsts] = np.minimum.reduceat(reached, begins) + self.hops[firsts]

    def _end(self) -> Any:
        import numpy as np

        after = np.full(len(self.hops), np.inf)
        after[-1] = 0.0
        return after

    def least(self, price: float, *, seconds: bool = True) -> tuple[float, float]:
        """Of all plans the least of seconds, or none of them, plus ``price`` times devices: the
        seconds and the devices of that plan."""
        import numpy as np

        after, values, paths = self._end(), [], []
        for stages, begins in self.rows:
            paid = stages.adds + price * stages.devices if seconds else price * stages.devices
            reached = paid + after[stages.stop]
            paths.append(reached)
            firsts = stages.first[begins]
            value = np.full(len(self.hops), np.inf)
            value[firsts] = np.minimum.reduceat(reached, begins)
            values.append(float(value[0]))
            after = value + self.hops if seconds else value
        depths = range(1, len(values) + 1) if self.depth is None else [self.depth]
        known = [(values[depth - 1], depth) for depth in depths if depth <= len(values)]
        least, depth = min(known, default=(float("inf"), 0))
        if least == float("inf"):
            return least, 0.0
        k, total, devices = 0, 0.0, 0.0
        for to_end in range(depth, 0, -1):
            stages = self.rows[to_end - 1][0]
            low, high = np.searchsorted(stages.first, (k, k + 1))
            at = int(low + paths[to_end - 1][low:high].argmin())
            total += float(stages.adds[at])
            devices += float(stages.devices[at])
            k = int(stages.stop[at])
            total += float(self.hops[k]) if to_end > 1 else 0.0
        return total, devices
