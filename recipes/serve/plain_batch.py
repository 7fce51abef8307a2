"""``PlainBatch``: a step's work as arrays, and the tensors a forward pass wants of it.

Plain data: it can travel to other processes, and be cut into runs of tokens that a pipeline works
on one after another.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class StepTensors:
    """Inputs of one forward pass.

    token_ids, positions: int64 [num_tokens]. slots: int64 [num_tokens].
    block_table: int32 [num_seqs, max_blocks]. seq_lens: int32 [num_seqs], new tokens included.
    cu_seqlens_q: int32 [num_seqs + 1]. last: index of the last token of every entry that is
        sampled from, int64 [num_sampled].
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    block_table: Tensor
    seq_lens: Tensor
    cu_seqlens_q: Tensor
    last: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class PlainBatch:
    """Entries of a step, packed.

    token_ids: int64 [num_tokens]. starts: position of the first token of every entry, counts: its
    tokens, int64 [num_seqs]. sampled: whether its last token is sampled from, bool [num_seqs].
    table: block ids, int32 [num_seqs, max_blocks]; what lies behind an entry's blocks is not read.
    """

    token_ids: np.ndarray
    starts: np.ndarray
    counts: np.ndarray
    sampled: np.ndarray
    table: np.ndarray

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def positions(self) -> np.ndarray:
        """Of every token in its sequence."""
        bounds = np.cumsum(self.counts)
        return np.arange(len(self.token_ids)) + np.repeat(
            self.starts - bounds + self.counts, self.counts
        )

    def tensors(self, block_size: int, device: torch.device) -> StepTensors:
        """The inputs of a forward pass."""
        rows = len(self.counts)
        bounds = np.zeros(rows + 1, np.int32)
        np.cumsum(self.counts, out=bounds[1:])
        positions = self.positions
        slots = self.table[np.repeat(np.arange(rows), self.counts), positions // block_size]
        slots = slots * np.int64(block_size) + positions % block_size
        seq_lens = (self.starts + self.counts).astype(np.int32)
        width = -(-int(seq_lens.max()) // block_size)

        def to(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        return StepTensors(
            token_ids=to(self.token_ids),
            positions=to(positions),
            slots=to(slots),
            block_table=to(np.ascontiguousarray(self.table[:, :width])),
            seq_lens=to(seq_lens),
            cu_seqlens_q=to(bounds),
            last=to(bounds[1:][self.sampled].astype(np.int64) - 1),
        )

    def cut(self, bounds: Sequence[int]) -> "list[PlainBatch]":
        """Runs of tokens between successive bounds; run one after another they are the batch.

        An entry cut in two is a chunk and what follows it: the second part finds the first in the
        cache.

        Args:
            bounds: from 0 to ``num_tokens``, rising.
        """
        if len(bounds) == 2:
            return [self]
        ends = np.cumsum(self.counts)
        begins = ends - self.counts
        parts = []
        for first, stop in itertools.pairwise(bounds):
            low, high = np.maximum(begins, first), np.minimum(ends, stop)
            here = np.flatnonzero(low < high)
            low, high = low[here], high[here]
            parts.append(
                PlainBatch(
                    token_ids=self.token_ids[first:stop],
                    starts=self.starts[here] + low - begins[here],
                    counts=high - low,
                    sampled=self.sampled[here] & (high == ends[here]),
                    table=self.table[here],
                )
            )
        return parts
