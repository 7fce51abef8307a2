"""``StageRunner``: the stages of a model behind an engine, computed one after another here."""

import collections
import time
from collections.abc import Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from benches.stage_pieces import BLOCK, Stages
from blocks.kv import BlockManager
from recipes.model import paged_attend
from recipes.serve.batch_tensors import BatchTensors
from recipes.serve.plain_batch import PlainBatch
from recipes.serve.sampler import Draw, Drawn, draw

Kept = TypeVar("Kept")


class StageRunner(Generic[Kept]):
    """What a ``ModelRunner`` in this process is beside ``submit`` and ``collect``.

    Args:
        stages: of the model. depth: most batches under way.
    """

    dtype, weight_bytes, block_size = "float32", 0, BLOCK

    def __init__(self, stages: Stages, depth: int) -> None:
        self.model, self.depth = stages.model, depth
        self.num_blocks = stages.caches[0].num_blocks
        self.seq_lens: Tensor | None = None
        self._stages = stages

    def explain(self) -> str:
        return f"{len(self._stages.parts)} stages in one process"

    def begin(self, manager: BlockManager, *, max_num_seqs: int, max_model_len: int) -> None:
        self._manager = manager
        self._tensors = BatchTensors(
            manager.table,
            num_rows=max_num_seqs,
            block_size=BLOCK,
            max_blocks=-(-max_model_len // BLOCK),
            device=torch.device("cpu"),
        )
        self._out: collections.deque[Kept] = collections.deque()

    def is_lost(self) -> bool:
        return False

    def close(self) -> None:
        pass

    def _computed(
        self, batch: PlainBatch, copies: list[tuple[int, int]]
    ) -> tuple[Tensor, list[float]]:
        """Hidden states behind the last stage, and processor seconds of every stage.

        Args:
            copies: of blocks, before.
        """
        step, stream, stage_s = batch.tensors(BLOCK, torch.device("cpu")), None, []
        for part, cache in zip(self._stages.parts, self._stages.caches, strict=True):
            began_s = time.process_time()
            cache.copy_blocks(copies)
            attend = paged_attend(
                self.model, cache, step.block_table, step.seq_lens, step.cu_seqlens_q,
                step.slots, first_layer=part.stack.start,
            )  # fmt: skip
            stream = part(step.token_ids, step.positions, attend, stream)
            stage_s.append(time.process_time() - began_s)
        assert stream is not None
        return stream, stage_s

    def _drawn(self, batch: PlainBatch, hidden: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
        """The next token of every sequence that has one."""
        last = torch.from_numpy(batch.counts.cumsum()[batch.sampled] - 1)
        return draw(self._stages.parts[-1].logits(hidden[last]), draws) if len(last) else []
