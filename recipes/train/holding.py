"""``Holding``: which part of a parameter this process has."""

import dataclasses
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.sharding import Cut, Group, Run, cut_tensor, gather_cut
from recipes.train.checkpoint import Box, Part


@dataclasses.dataclass(frozen=True)
class Holding:
    """A tensor-parallel part of a tensor, and of that a run of rows where replicas share it.

    cut: over ``tensor``, the tensor-parallel ranks; None where they hold it alike.
    rows: over ``replicas``, of the part; None where each has all of it.
    """

    cut: Cut | None = None
    tensor: Group | None = None
    rows: Cut | None = None
    replicas: Group | None = None

    def whole(self, held: Tensor) -> Tensor:
        """The whole tensor, on every process that holds a part: all call this together."""
        if self.rows is not None and self.replicas is not None:
            held = gather_cut(held, self.rows, self.replicas)
        if self.cut is not None and self.tensor is not None:
            held = gather_cut(held, self.cut, self.tensor)
        return held

    def of(self, whole: Tensor) -> Tensor:
        """What this process holds of a whole tensor; all of a number."""
        if not whole.dim():
            return whole
        if self.cut is not None and self.tensor is not None:
            whole = cut_tensor(whole, self.cut, self.tensor.rank)
        if self.rows is not None and self.replicas is not None:
            whole = cut_tensor(whole, self.rows, self.replicas.rank)
        return whole

    def square(self, part: Tensor) -> float:
        """Sum of squares, in float64, of what no tensor-parallel rank before this one holds."""
        if self.tensor is None or (self.cut is None and self.tensor.rank == 0):
            pieces = [part]
        elif self.cut is None:
            pieces = []
        else:
            dim, owned = self.cut.dim, self.cut.owned(self.tensor.rank)
            pieces = [part.narrow(dim, run.start, run.size) for run in owned]
        return math.fsum(
            torch.linalg.vector_norm(piece, dtype=torch.float64).item() ** 2 for piece in pieces
        )

    def in_checkpoint(self, held: Tensor) -> Tensor:
        """``held`` as checkpoints take it: itself if it is the whole tensor."""
        shape = self.whole_shape(held.shape)
        if shape == tuple(held.shape) or not held.dim():
            return held
        return Part.of(shape, held.dtype, self._boxes(held))

    def whole_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the whole tensor, from that of what is held."""
        sizes = list(shape)
        for cut in (self.rows, self.cut):
            if cut is not None and sizes:
                sizes[cut.dim] = cut.size
        return tuple(sizes)

    def _boxes(self, held: Tensor) -> list[Box]:
        """Runs of the cut, as far as the rows held reach."""
        rows = Run(0, held.shape[0])
        if self.rows is not None and self.replicas is not None:
            mine = self.rows.runs[self.replicas.rank]
            rows = mine[0] if mine else Run(0, 0)
        if self.cut is None or self.tensor is None:
            return [Box((rows.start, *[0] * (held.ndim - 1)), held)] if rows.size else []
        dim, boxes = self.cut.dim, []
        runs = self.cut.runs[self.tensor.rank]
        ends = list(itertools.accumulate(run.size for run in runs))
        for run, end in zip(runs, ends, strict=True):
            place = Run(end - run.size, end)  # of the run in the tensor-parallel part
            offsets = [0] * held.ndim
            offsets[0] = rows.start
            if dim == 0:
                first, stop = max(place.start, rows.start), min(place.stop, rows.stop)
                if first >= stop:
                    continue
                offsets[0] = run.start + first - place.start
                values = held.narrow(0, first - rows.start, stop - first)
            else:
                offsets[dim] = run.start
                values = held.narrow(dim, place.start, run.size)
            if values.numel():
                boxes.append(Box(tuple(offsets), values))
        return boxes
