"""The forward pass of one batch: tensors in, the logits of the sampled rows out."""

import torch
from torch import Tensor

from blocks.kv import BlockManager, KVCache
from blocks.sched import Batch
from recipes.model import Decoder, paged_attend
from recipes.serve.batch_tensors import BatchTensors, StepTensors


class Runner:
    """A decoder over a paged cache.

    Args:
        decoder: the model, on its device.
        cache: keys and values of all layers.
        manager: whose block tables are read.
        max_num_seqs: most sequences alive at once, waiting ones that held blocks included.
        max_model_len: longest sequence [tokens].
    """

    def __init__(
        self,
        decoder: Decoder,
        cache: KVCache,
        manager: BlockManager,
        *,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._manager = manager
        self.last_step: StepTensors | None = None
        self.tensors = BatchTensors(
            manager.table,
            num_rows=max_num_seqs,
            block_size=cache.block_size,
            max_blocks=-(-max_model_len // cache.block_size),
            device=next(decoder.parameters()).device,
        )

    @torch.inference_mode()
    def forward(self, batch: Batch) -> tuple[Tensor, StepTensors]:
        """Run the model over the batch's tokens and write their keys and values.

        Returns:
            Hidden states [num_tokens, hidden_size], and the step's tensors.
        """
        copies = self._manager.take_copies()
        if copies:
            self._cache.copy_blocks(copies)
        step = self.last_step = self.tensors.build(batch)
        attend = paged_attend(
            self._decoder.config,
            self._cache,
            step.block_table,
            step.seq_lens,
            step.cu_seqlens_q,
            step.slots,
        )
        return self._decoder(step.token_ids, step.positions, attend), step

    @torch.inference_mode()
    def logits(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Next-token scores [num_rows, vocab_size] of the chosen tokens."""
        chosen = hidden if rows.numel() == hidden.shape[0] else hidden[rows]
        return self._decoder.logits(chosen)

    @torch.inference_mode()
    def logits_of(self, hidden: Tensor) -> Tensor:
        """Next-token scores of all rows given."""
        return self._decoder.logits(hidden)
