"""A runner in this process that has batches under way, as ranks in a pipeline have."""

import collections
from collections.abc import Callable, Sequence

import torch

from blocks.kv import BlockManager, KVCache
from blocks.sched import Batch
from recipes.model import Decoder, paged_attend
from recipes.serve import Engine, EngineConfig
from recipes.serve.loading import detokenizers
from recipes.serve.memory import make_cache
from recipes.serve.model_runner import StepResult
from recipes.serve.plain_batch import StepTensors
from recipes.serve.prompt_scores import PromptRows, score_prompts
from recipes.serve.runner import Runner
from recipes.serve.sampler import Draw, draw
from tests.serve.models import tiny_decoder, tiny_tokenizer

Order = tuple[Batch, list[tuple[int, int]], StepTensors, list[Draw], list[PromptRows]]


class StagedRunner(Runner):
    """Takes all it needs of a batch when it is submitted, and computes when it is collected.

    breaks: called with every batch; true where computing it is to raise, and to write nothing.
    """

    def __init__(self, decoder: Decoder, cache: KVCache, depth: int) -> None:
        super().__init__(decoder, cache)
        self.depth = depth
        self.breaks: Callable[[Batch], bool] = lambda batch: False
        self.most_out = 0
        self._orders: collections.deque[Order] = collections.deque()

    def begin(self, manager: BlockManager, *, max_num_seqs: int, max_model_len: int) -> None:
        super().begin(manager, max_num_seqs=max_num_seqs, max_model_len=max_model_len)
        self._orders.clear()

    def submit(self, batch: Batch, draws: Sequence[Draw], prompts: Sequence[PromptRows]) -> None:
        step = self.last_step = self.tensors.build(batch)
        copies = self._manager.take_copies()
        self._orders.append((batch, copies, step, list(draws), list(prompts)))
        self.most_out = max(self.most_out, len(self._orders))
        assert len(self._orders) <= self.depth

    @torch.inference_mode()
    def collect(self) -> StepResult:
        batch, copies, step, draws, prompts = self._orders.popleft()
        if self.breaks(batch):
            raise RuntimeError("broken")
        self.cache.copy_blocks(copies)
        attend = paged_attend(
            self.decoder.config,
            self.cache,
            step.block_table,
            step.seq_lens,
            step.cu_seqlens_q,
            step.slots,
        )
        hidden = self.decoder(step.token_ids, step.positions, attend)
        scores = score_prompts(hidden, prompts, self.logits_of) if prompts else []
        return StepResult(draw(self.logits(hidden, step.last), draws), scores)


def staged_engine(depth: int, num_blocks: int = 36, **settings: int) -> tuple[Engine, StagedRunner]:
    """An engine over the tiny decoder with so many batches under way; few blocks, small steps."""
    small = {"token_budget": 24, "max_num_seqs": 12, "block_size": 4}
    config = EngineConfig(kv_bytes=num_blocks * 4 * 256, **(small | settings))  # type: ignore
    decoder = tiny_decoder()
    runner = StagedRunner(decoder, make_cache(decoder, config), depth)
    return Engine(runner, detokenizers(tiny_tokenizer()), config), runner
