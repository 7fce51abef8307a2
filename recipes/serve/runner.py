"""The forward pass of one batch in this process: tensors in, tokens out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from blocks.kv import BlockManager, KVCache
from blocks.sched import Batch
from recipes.model import Decoder, ModelConfig, paged_attend
from recipes.serve.batch_tensors import BatchTensors
from recipes.serve.model_runner import StepResult
from recipes.serve.plain_batch import StepTensors
from recipes.serve.prompt_scores import PromptRows, score_prompts
from recipes.serve.sampler import Draw, draw


class Runner:
    """A decoder over a paged cache, both in this process; a ``ModelRunner`` that computes a batch
    when it is submitted.

    Args:
        decoder: the model, on its device.
        cache: keys and values of all layers.
    """

    depth = 1

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self.decoder = decoder
        self.cache = cache
        self.last_step: StepTensors | None = None
        self._result: StepResult | None = None

    @property
    def model(self) -> ModelConfig:
        return self.decoder.config

    @property
    def dtype(self) -> str:
        return str(next(self.decoder.parameters()).dtype).removeprefix("torch.")

    @property
    def weight_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.decoder.parameters())

    @property
    def num_blocks(self) -> int:
        return self.cache.num_blocks

    @property
    def block_size(self) -> int:
        return self.cache.block_size

    @property
    def seq_lens(self) -> Tensor | None:
        return None if self.last_step is None else self.last_step.seq_lens

    def explain(self) -> str:
        return self.cache.explain()

    def begin(self, manager: BlockManager, *, max_num_seqs: int, max_model_len: int) -> None:
        self._manager = manager
        self.last_step = None
        self.tensors = BatchTensors(
            manager.table,
            num_rows=max_num_seqs,
            block_size=self.cache.block_size,
            max_blocks=-(-max_model_len // self.cache.block_size),
            device=next(self.decoder.parameters()).device,
        )

    def is_lost(self) -> bool:
        return False

    def submit(self, batch: Batch, draws: Sequence[Draw], prompts: Sequence[PromptRows]) -> None:
        hidden, tensors = self.forward(batch)
        logits = self.logits(hidden, tensors.last)
        scores = score_prompts(hidden, prompts, self.logits_of) if prompts else []
        self._result = StepResult(draw(logits, draws), scores)

    def collect(self) -> StepResult:
        result, self._result = self._result, None
        assert result is not None, "nothing was submitted"
        return result

    def close(self) -> None:
        pass

    @torch.inference_mode()
    def forward(self, batch: Batch) -> tuple[Tensor, StepTensors]:
        """Run the model over the batch's tokens and write their keys and values.

        Returns:
            Hidden states [num_tokens, hidden_size], and the step's tensors.
        """
        copies = self._manager.take_copies()
        if copies:
            self.cache.copy_blocks(copies)
        step = self.last_step = self.tensors.build(batch)
        attend = paged_attend(
            self.decoder.config,
            self.cache,
            step.block_table,
            step.seq_lens,
            step.cu_seqlens_q,
            step.slots,
        )
        return self.decoder(step.token_ids, step.positions, attend), step

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Next-token scores [num_rows, vocab_size] of the chosen tokens."""
        chosen = hidden if rows.numel() == hidden.shape[0] else hidden[rows]
        return self.decoder.logits(chosen)

    @torch.inference_mode()
    def logits_of(self, hidden: Tensor) -> Tensor:
        """Next-token scores of all rows given."""
        return self.decoder.logits(hidden)
