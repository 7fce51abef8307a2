"""``CutProgram``: the least sum of stages over every cut of layers. Needs numpy, no torch."""

from typing import Any, NamedTuple

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.cut_windows import HAIR, CutWindows
from blocks.pipeline.inter_op.fitting_cuts import earliest_layers
from blocks.pipeline.inter_op.layer_sums import LayerSums
from blocks.pipeline.inter_op.stage_table import transfers


class CutPlan(NamedTuple):
    """Stages ``(first, stop, shape, option)`` by layers, what they add, and their devices."""

    stages: tuple[tuple[int, int, int, int], ...]
    seconds: float
    devices: int


class CutCosts:
    """What the program adds up, by row (a shape with an option) and bound between layers.

    begins: number of the first row of every shape.
    shape_of: for every row its shape, numbered among those that rows have.
    whole, once: sums from the first layer on of all passes of a microbatch, and of what is done
        once, ``[row, bound]``.
    alone, once_alone: what every stage adds, ``[row]``.
    hops: over a boundary and back, ``[shape before, after, bound]``.
    """

    def __init__(self, sums: LayerSums, windows: CutWindows, budget: Budget) -> None:
        import numpy as np

        self.rows, self.num_layers = windows.rows, sums.num_layers
        self.flow, self.count = windows.flow, windows.count
        self.devices = sum(budget.counts.values())
        self.sizes = np.array([float(row.devices) for row in self.rows])
        shapes = np.array([row.shape for row in self.rows])
        self.begins = np.flatnonzero(np.diff(shapes, prepend=-1))
        used = shapes[self.begins]
        self.shape_of = np.searchsorted(used, shapes)
        there, back = transfers(range(sums.num_layers + 1), sums.shapes, sums.transfer)
        self.hops = (there + back)[:, used][:, :, used].transpose(1, 2, 0)
        self.whole, self.alone = windows.seconds(1, 1)
        self.once = windows.upto["once_s"]
        self.once_alone = windows.each["once_s"]


class CutProgram:
    """The program over the windows under a cap, for prices of devices.

    Where forwards and backwards alternate the cap is one on trips (``trip_bound``), too: with ``a``
    trips from a stage to the end and back, and what it itself adds for the other microbatches,

        (B - 1 - a p + a) own + a rest <= cap

    for the ``rest`` of the stages after it. At any price the program of those stages says what they
    add at least, with the price for the most devices that stages before leave them; so the stages
    whose ``own`` is too long even then end their windows earlier.
    """

    def __init__(self, of: CutCosts, cap: int | float, every: list[Any]) -> None:
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
        rest, held = of.count - 1, of.flow.ahead(to_end, of.count)
        most = rest // held if of.flow.alternates else 0
        return [(float(rest - a * held + a), float(a)) for a in sorted({1, most}) if 0 < a <= most]

    def _ends(self, to_end: int, after: Any, price: int | float) -> Any:
        """Windows that keep to the cap on trips, too.

        after: priced, of the stages that follow, ``[shape, bound]``.
        """
        import numpy as np

        of, ends = self.of, self.every[to_end - 1]
        rest = np.maximum(after - max(price, 0.0) * self.left, 0.0)[of.shape_of]
        for own, trips in self._trips(to_end):
            alone = own * of.whole
            sums = np.minimum.accumulate((alone + trips * rest)[:, ::-1], axis=1)[:, ::-1]
            most = alone[:, :-1] + (self.cap - own * of.alone)[:, None]
            most = most + HAIR * (self.cap + alone[:, -1:])
            last = [np.searchsorted(*pair, side="right") for pair in zip(sums, most, strict=True)]
            ends = np.minimum(ends, np.stack(last) - 1)
        return np.maximum(ends, np.arange(of.num_layers))

    def has_devices(self, *, whole: bool) -> bool:
        """Whether stages within the cap come from the last layer to the first, on all devices or,
        where they need not be used ``whole``, on fewer."""
        firsts = earliest_layers(self.of.rows, self.every, self.of.devices)
        return any((first[-1] if whole else first.min()) == 0 for first in firsts)

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

    def least(self, price: int | float) -> CutPlan | None:
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
