"""``Problem``: one schedule with one number of microbatches on one cluster.

Needs numpy, no torch.
"""

import dataclasses
import functools
from collections.abc import Sequence

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.closed_formula import Plan
from blocks.pipeline.inter_op.formula import Formula, trip_bound
from blocks.pipeline.inter_op.priced import Priced
from blocks.pipeline.inter_op.stage_table import StageTable
from blocks.pipeline.inter_op.step_bound import StepBounds, step_bounds

MANY = 32
"""Bounds above which a problem is large."""


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """What the searches for a partition share.

    caps: bytes of a device, for every shape.
    """

    priced: Priced
    devices: Budget
    max_stages: int
    caps: Sequence[int | float]

    @functools.cached_property
    def trips(self) -> Formula | None:
        """The bound of plans one by one."""
        return trip_bound(self.priced)

    @functools.cached_property
    def _deeper(self) -> dict[int, "Problem"]:
        return {}

    @property
    def is_large(self) -> bool:
        """Whether a coarser partition is worth its time."""
        return len(self.priced.table.bounds) > MANY

    def of_depth(self, depth: int | None) -> "Problem":
        """The same with the memory of a plan of exactly so many stages."""
        if depth is None or depth == self.priced.depth:
            return self
        if depth not in self._deeper:
            deep = self.priced.of_depth(depth)
            self._deeper[depth] = Problem(deep, self.devices, depth, self.caps)
        return self._deeper[depth]

    def on(self, table: StageTable) -> "Problem":
        """The same with stages between fewer bounds."""
        priced = Priced(table, self.priced.schedule, self.priced.count, self.caps)
        most = min(self.max_stages, len(table.bounds) - 1)
        return Problem(priced, self.devices, most, self.caps)

    def without_caps(self) -> "Problem":
        """The same on devices that hold whatever is asked of them."""
        priced, caps = self.priced, [float("inf")] * len(self.caps)
        free = Priced(priced.table, priced.schedule, priced.count, caps)
        return Problem(free, self.devices, self.max_stages, caps)

    def same(self, other: "Problem") -> bool:
        """Whether both are of one schedule and number of microbatches, and so of one depth."""
        mine, theirs = self.priced, other.priced
        alike = None in (mine.depth, theirs.depth) or mine.depth == theirs.depth
        return (mine.schedule, mine.count) == (theirs.schedule, theirs.count) and alike

    def cuts(self, plan: Plan) -> tuple[int, ...]:
        """Layers at which its stages begin, and the number of layers."""
        bounds = self.priced.table.bounds
        return (*(bounds[stage[0]] for stage in plan), bounds[-1])

    def bounds(self, below: int | float) -> StepBounds:
        """Of all plans."""
        return step_bounds(self.priced, self.devices, self.max_stages, below=below)

    def bound_of(self, plan: Plan) -> float:
        """What a plan takes at least; infinity where a stage does not fit."""
        deep = self.of_depth(len(plan) if self.priced.flow.follows_depth else None)
        to_end = range(len(plan), 0, -1)
        fits = all(bool(deep.priced.fits(n)[at]) for n, at in zip(to_end, plan, strict=True))
        assert deep.trips is not None, "the number of stages is known"
        return deep.trips.seconds(plan) if fits else float("inf")
