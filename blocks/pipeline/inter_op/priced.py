"""``Priced``: a stage table under one schedule and number of microbatches.

Needs numpy, no torch.
"""

import functools
from collections.abc import Sequence
from typing import Any

from blocks.pipeline.inter_op.flow import FLOWS
from blocks.pipeline.inter_op.stage_table import StageTable

Stage = tuple[int, int, int, int]
"""Indices of first bound, last bound, shape and option."""


class Priced:
    """Seconds of stages for the programs over them, and which of them fit.

    Args:
        table: the stages.
        schedule: a name of ``FLOWS``.
        num_microbatches: of a step.
        caps: bytes of a device, for every shape.
        depth: number of all stages where the schedule's memory depends on it. Without it the
            fewest microbatches that a stage could hold are counted, which gives bounds.
    """

    def __init__(
        self,
        table: StageTable,
        schedule: str,
        num_microbatches: int,
        caps: Sequence[int | float],
        depth: int | None = None,
    ) -> None:
        import numpy as np

        self.table, self.schedule, self.count = table, schedule, num_microbatches
        self.flow, self.depth = FLOWS[schedule], depth
        self.caps = np.asarray(caps, float)[:, None]
        cells = table.cells
        once = cells["once_s"] / num_microbatches
        gradients = cells["backward_s"] + cells["weight_s"]
        self.whole_s = cells["forward_s"] + gradients
        """Seconds of all passes of a microbatch."""
        self.pace_s = self.whole_s + once
        """The same with its share of what is done once a step."""
        self.through_s = self.pace_s
        if self.flow.splits:
            put_off = np.where(np.isfinite(self.pace_s), 2 * cells["weight_s"], 0.0)
            self.through_s = np.maximum(self.pace_s - put_off, 0.0)

    def in_flight(self, to_end: int, depth: int | None = None) -> int:
        """Microbatches held by the stage with ``to_end`` stages from it to the end."""
        known = depth or self.depth or to_end
        return self.flow.in_flight(to_end, known, self.count)

    @functools.cached_property
    def _fits(self) -> dict[int, Any]:
        return {}

    def bytes_of(self, in_flight: int) -> Any:
        """Peak bytes of every stage that holds so many microbatches."""
        cells = self.table.cells
        held = cells["microbatch_bytes"] * in_flight
        return cells["fixed_bytes"] + cells["transient_bytes"] + held

    def fits(self, to_end: int) -> Any:
        """Which stages exist and keep to the caps, ``[k, i, m, o]``."""
        import numpy as np

        in_flight = self.in_flight(to_end)
        if in_flight not in self._fits:
            exists = np.isfinite(self.whole_s)
            self._fits[in_flight] = exists & (self.bytes_of(in_flight) <= self.caps)
        return self._fits[in_flight]

    def least(self, seconds: Any, to_end: int) -> Any:
        """Over the options that fit, ``[k, i, m]``."""
        import numpy as np

        return np.where(self.fits(to_end), seconds, np.inf).min(axis=-1)

    def through(self, to_end: int, cap: int | float) -> Any:
        """``[k, i, m, o]``: what a stage adds to the sum, where its pace keeps to ``cap``."""
        import numpy as np

        seconds = self.pace_s if to_end == 1 else self.through_s
        return np.where(self.fits(to_end) & (self.pace_s <= cap), seconds, np.inf)

    def formula_s(self, stages: Sequence[Stage]) -> float:
        """Sum and pace of a plan in one number, see ``closed_formula``."""
        total, pace = self.total_and_pace(stages)
        return total + (self.count - 1) * pace

    def total_and_pace(self, stages: Sequence[Stage]) -> tuple[float, float]:
        """The two terms: seconds of one microbatch through all stages, seconds between two."""
        total, pace, shape = 0.0, 0.0, None
        for to_end, stage in enumerate(reversed(stages), 1):
            if shape is not None:
                total = self.hops_s[stage[1], stage[2], shape] + total
            through = self.pace_s if to_end == 1 else self.through_s
            total = float(through[stage] + total)
            pace = max(pace, float(self.pace_s[stage]))
            if self.paced_by_trips:
                pace = max(pace, total / to_end)
            shape = stage[2]
        return total, pace

    @functools.cached_property
    def hops_s(self) -> Any:
        """Seconds of a microbatch over a boundary and back, ``[bound, before, after]``."""
        return self.table.send_s + self.table.return_s

    @property
    def paced_by_trips(self) -> bool:
        """Whether a stage waits for its oldest microbatch once it holds as many as it may."""
        return self.schedule == "one_f_one_b"
