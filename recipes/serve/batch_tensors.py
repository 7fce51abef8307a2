"""A batch of the scheduler as plain arrays, and as the tensors a forward pass wants.

Every running sequence keeps a row of one long-lived block table, updated where it changed; a step
then gathers rows and computes positions and slots for all tokens at once, in numpy.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from blocks._checks import check
from blocks.sched import Batch, Entry
from recipes.serve.plain_batch import PlainBatch, StepTensors


class BlockIds(Protocol):
    """A sequence's blocks; the list grows at its end and changes only in its last entry."""

    block_ids: list[int]


@dataclasses.dataclass(slots=True)
class _Row:
    row: int
    epoch: int
    num_blocks: int
    last_block: int


class BatchTensors:
    """Builds `StepTensors`; owns the rows.

    A row is a cache entry: it may outlive its sequence and is taken when rows run short, so nobody
    has to say that a sequence has ended.

    Args:
        table_of: a sequence id's blocks; ids are never used twice.
        num_rows: most sequences in one batch.
        block_size: tokens per block.
        max_blocks: most blocks of one sequence.
        device: where the tensors go.
    """

    def __init__(
        self,
        table_of: Callable[[int], BlockIds],
        *,
        num_rows: int,
        block_size: int,
        max_blocks: int,
        device: torch.device,
    ) -> None:
        self._table_of = table_of
        self._block_size = block_size
        self._device = device
        self._table = np.zeros((num_rows, max_blocks), dtype=np.int32)
        self._rows: dict[int, _Row] = {}
        self._free = list(range(num_rows - 1, -1, -1))

    def build(self, batch: Batch) -> StepTensors:
        """The tensors of one step."""
        return self.plain(batch).tensors(self._block_size, self._device)

    def plain(self, batch: Batch) -> PlainBatch:
        """One step as plain arrays, in memory of their own."""
        entries = batch.entries
        self._make_room(entries)
        rows = np.fromiter(map(self._update_row, entries), np.int64, len(entries))
        token_ids: list[int] = []
        for entry in entries:
            tokens, start, count = entry.sequence.tokens, entry.start, entry.num_tokens
            if count == 1:
                token_ids.append(tokens[start])
            else:
                token_ids += tokens[start : start + count]
        starts = np.fromiter((e.start for e in entries), np.int64, len(entries))
        counts = np.fromiter((e.num_tokens for e in entries), np.int64, len(entries))
        sampled = np.fromiter((e.num_samples > 0 for e in entries), np.bool_, len(entries))
        width = -(-int((starts + counts).max()) // self._block_size)
        table = self._table[rows, :width]
        return PlainBatch(np.array(token_ids, np.int64), starts, counts, sampled, table)

    def _make_room(self, entries: list[Entry]) -> None:
        """Have a free row for every entry that may need one."""
        check(
            len(entries) <= len(self._table),
            "batch",
            f"at most {len(self._table)} sequences",
            len(entries),
        )
        if len(self._free) >= len(entries):
            return
        staying = {entry.sequence.sequence_id for entry in entries}
        for sequence_id in [known for known in self._rows if known not in staying]:
            self._free.append(self._rows.pop(sequence_id).row)

    def _update_row(self, entry: Entry) -> int:
        """The entry's row, brought up to date; usually two comparisons."""
        sequence_id = entry.sequence.sequence_id
        ids = self._table_of(sequence_id).block_ids
        row = self._rows.get(sequence_id)
        if row is None:
            row = self._rows[sequence_id] = _Row(self._free.pop(), entry.epoch, 0, -1)
        elif row.epoch != entry.epoch:
            row.epoch, row.num_blocks, row.last_block = entry.epoch, 0, -1
        held = row.num_blocks
        if len(ids) == held and ids[-1] == row.last_block:
            return row.row
        first = held - 1 if held and ids[held - 1] != row.last_block else held
        self._table[row.row, first : len(ids)] = ids[first:]
        row.num_blocks, row.last_block = len(ids), ids[-1]
        return row.row
