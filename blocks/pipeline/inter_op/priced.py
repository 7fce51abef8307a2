"""``Priced``: a stage table under one schedule and number of microbatches.

Needs numpy, no torch.
"""

import copy
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
        self.exists, self.cells, self.whole_s = table.exists, table.filled, table.whole_s
        self.hops_s = table.send_s + table.return_s
        """Seconds of a microbatch over a boundary and back, ``[bound, before, after]``."""
        self._fits: dict[int, Any] = {}

    def of_depth(self, depth: int) -> "Priced":
        """The same with the memory of a plan of exactly so many stages."""
        found = copy.copy(self)  # what fits is known by microbatches held, and so of all depths
        found.depth = depth
        return found

    def in_flight(self, to_end: int, depth: int | None = None) -> int:
        """Microbatches held by the stage with ``to_end`` stages from it to the end."""
        known = depth or self.depth or to_end
        return self.flow.in_flight(to_end, known, self.count)

    def bytes_of(self, in_flight: int) -> Any:
        """Peak bytes of every stage that holds so many microbatches."""
        cells = self.cells
        held = cells["microbatch_bytes"] * in_flight
        return cells["fixed_bytes"] + cells["transient_bytes"] + held

    def fits(self, to_end: int) -> Any:
        """Which stages exist and keep to the caps, ``[k, i, m, o]``."""
        in_flight = self.in_flight(to_end)
        if in_flight not in self._fits:
            self._fits[in_flight] = self.exists & (self.bytes_of(in_flight) <= self.caps)
        return self._fits[in_flight]

    def least(self, seconds: Any, to_end: int) -> Any:
        """Over the options that fit, ``[k, i, m]``."""
        import numpy as np

        return least_option(np.where(self.fits(to_end), seconds, np.inf))


def least_option(values: Any) -> Any:
    """The least along the last axis, which is short."""
    import numpy as np

    return functools.reduce(np.minimum, [values[..., o] for o in range(values.shape[-1])])
