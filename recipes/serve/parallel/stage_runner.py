"""``StageRunner``: what one rank computes of a step: its heads, its layers, its part of the cache.

All ranks are given the same step and take part in the same collectives, in the same order. Nothing
but tensors passes between them: sums inside a stage, the residual stream from stage to stage,
scores to all ranks of the last stage. A stage that has handed its part of a step on begins with the
next step, if there is one, whether the stage behind it is ready for that or not.
"""

import collections
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from blocks.kv import KVCache
from blocks.sharding import Group, all_gather
from recipes.model import paged_attend, read_config
from recipes.model.load_part import load_part
from recipes.model.part import DecoderPart
from recipes.serve.parallel.cache_size import cache_fields
from recipes.serve.parallel.layout import Layout
from recipes.serve.parallel.messages import Result, Step, draws_of
from recipes.serve.parallel.rank_spec import RankSpec
from recipes.serve.plain_batch import PlainBatch
from recipes.serve.prompt_scores import score_prompts
from recipes.serve.sampler import draw


class StageRunner:
    """One rank's part of a model, with its part of the cache.

    Args:
        spec: which rank it is. groups: of its axes, see ``join``.
    """

    def __init__(self, spec: RankSpec, groups: dict[str, Group]) -> None:
        self.layout: Layout = spec.layout
        self.rank = spec.rank
        index = f":{spec.device_index}" if spec.device == "cuda" else ""
        self.device = torch.device(spec.device + index)
        self.group = groups["tensor"]
        dtype = None if spec.dtype is None else getattr(torch, spec.dtype)
        self.part = _load(spec, self.group, dtype, self.device)
        self.model = self.part.config
        self.dtype = next(self.part.parameters()).dtype
        fields = cache_fields(self.model, self.layout, self.rank, spec.kv_dtype, self.dtype)
        self._pp = spec.pp
        self._sent: collections.deque[list[tuple[dist.Work | None, Tensor]]] = collections.deque()
        self.cache = KVCache(
            spec.num_blocks, block_size=spec.block_size, device=self.device, **fields
        )

    @property
    def weight_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.part.parameters())

    @torch.inference_mode()
    def run(self, step: Step) -> Result | None:
        """Compute a step; at the sampling rank what came of it.

        What is handed on is kept until it has arrived: of as many steps as there are stages. Who is
        further ahead waits here.
        """
        self.settle(self._pp - 1)
        if step.copies:
            self.cache.copy_blocks(step.copies)
        batch = step.batch()
        hidden = self._forward(batch, step.bounds)
        if hidden is None:
            return None
        last = torch.from_numpy(batch.counts.cumsum()[batch.sampled] - 1).to(self.device)
        logits = self._logits(hidden[last]) if len(last) else hidden.new_empty(0, 0)
        scores = score_prompts(hidden, step.prompts, self._logits)
        if self.rank != self.layout.sampler:
            return None
        return Result(step.number, draw(logits, draws_of(step)), scores)

    def settle(self, num_steps: int = 0) -> None:
        """Wait until what was handed on has arrived, but for the last ``num_steps`` steps."""
        while len(self._sent) > num_steps:
            for work, _ in self._sent.popleft():
                assert work is not None
                work.wait()

    def _forward(self, batch: PlainBatch, bounds: Sequence[int]) -> Tensor | None:
        """Run by run through the layers here; at the last stage the hidden states."""
        hidden: list[Tensor] = []
        sent: list[tuple[dist.Work | None, Tensor]] = []
        for piece in batch.cut(bounds):
            step = piece.tensors(self.cache.block_size, self.device)
            attend = paged_attend(
                self.model,
                self.cache,
                step.block_table,
                step.seq_lens,
                step.cu_seqlens_q,
                step.slots,
                first_layer=self.part.stack.start,
            )
            stream = None if self.part.is_first else self._receive(piece.num_tokens)
            found = self.part(step.token_ids, step.positions, attend, stream)
            if self.part.is_last:
                hidden.append(found)
            else:
                found = found.contiguous()
                sent.append((dist.isend(found, self.rank + self.layout.tp), found))
        if sent:
            self._sent.append(sent)
        return torch.cat(hidden) if len(hidden) > 1 else hidden[0] if hidden else None

    def _receive(self, num_tokens: int) -> Tensor:
        shape = (num_tokens, self.model.hidden_size)
        stream = torch.empty(shape, dtype=self.dtype, device=self.device)
        dist.recv(stream, self.rank - self.layout.tp)
        return stream

    def _logits(self, hidden: Tensor) -> Tensor:
        """Scores of the whole vocabulary, on every rank of the last stage."""
        scores = self.part.logits(hidden)
        return all_gather(scores, self.group, 1, size=self.model.vocab_size)


def _load(
    spec: RankSpec, group: Group, dtype: torch.dtype | None, device: torch.device
) -> DecoderPart:
    layers, stage = spec.layout.layers(read_config(spec.folder)), spec.layout.stage(spec.rank)
    return load_part(
        spec.folder,
        layers[stage],
        stage=stage,
        num_stages=spec.pp,
        group=group,
        dtype=dtype,
        device=device,
        max_positions=spec.max_positions,
    )
