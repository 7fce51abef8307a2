"""Where to cut a step so that a pipeline of stages is done with it soonest."""

import collections
from collections.abc import Callable

import numpy as np

from blocks.pipeline import slice_tokens, uniform_slices
from recipes.serve.parallel.piece_cost import PieceCost
from recipes.serve.plain_batch import PlainBatch

MAX_CELLS = 64
REMEMBERED = 1024
SAME_START = 64
"""Entries whose first positions are equal in multiples of this are cut alike."""
MORE_WORK = 1.05
"""So many times the work of a whole step its runs may be, where other steps fill the stages."""


class StepSlices:
    """Bounds of the runs of tokens that follow one another through the stages.

    The exact program of ``blocks.pipeline.slice_tokens`` (Li et al. 2021, TeraPipe) on packed
    tokens: a run may hold decodes, parts of prompts, or both. It takes milliseconds, so bounds are
    remembered for steps that look alike, as those of steady decoding do.

    Args:
        num_stages: of the pipeline.
        cost: of a run on one stage; None leaves steps whole.
        num_slices: so many equal runs instead.
    """

    def __init__(
        self, num_stages: int, cost: PieceCost | None = None, num_slices: int | None = None
    ) -> None:
        self.num_stages, self.cost, self.num_slices = num_stages, cost, num_slices
        self._known: collections.OrderedDict[tuple[bytes, bytes, bool], list[int]]
        self._known = collections.OrderedDict()

    def bounds(self, batch: PlainBatch, *, alone: bool = True) -> list[int]:
        """From 0 to the number of tokens.

        Args:
            alone: whether no other step is in the stages; else a step is cut only where that costs
                the stages hardly any work, for they have some without it.
        """
        count = batch.num_tokens
        if self.num_slices is not None:
            return list(uniform_slices(count, min(self.num_slices, count)))
        if self.cost is None or self.num_stages == 1:
            return [0, count]
        key = batch.counts.tobytes(), (batch.starts // SAME_START).tobytes(), alone
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._cut(batch, self.cost.over(batch), alone)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return found

    def _cut(self, batch: PlainBatch, cost: Callable, alone: bool) -> list[int]:
        count = batch.num_tokens
        step = -(-count // MAX_CELLS)
        bounds = list(slice_tokens(cost, count, self.num_stages, granularity=step).bounds)
        at = np.array(bounds)
        work, whole = cost(np.diff(at), at[:-1]).sum(), cost(at[-1:], at[:1]).sum()
        return bounds if alone or work <= MORE_WORK * whole else [0, count]
