"""Processor time of runs of a prompt on the stages of a real model, and the pipeline they make."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from blocks.kv import KVCache
from recipes.model import paged_attend
from recipes.model.load_part import load_part
from recipes.serve.parallel.piece_cost import PieceCost, PieceSample, fit_piece_cost
from recipes.serve.plain_batch import PlainBatch

BLOCK = 16


def prompt_batch(num_tokens: int, start: int = 0) -> PlainBatch:
    """One prompt after a prefix, in blocks of its own."""
    one = np.ones(1, np.int64)
    blocks = np.arange(1, -(-(start + num_tokens) // BLOCK) + 1, dtype=np.int32)[None]
    ids = np.arange(num_tokens) % 300
    return PlainBatch(ids, one * start, one * num_tokens, one > 0, blocks)


class Stages:
    """The stages of a folder, in this process, each with its cache."""

    def __init__(self, folder: Path, layers: Sequence[range], max_len: int) -> None:
        count = len(layers)
        self.parts = [
            load_part(folder, held, stage=i, num_stages=count) for i, held in enumerate(layers)
        ]
        self.model = self.parts[0].config
        self.caches = [
            KVCache(
                -(-max_len // BLOCK) + 1,
                num_layers=len(held),
                block_size=BLOCK,
                num_kv_heads=self.model.num_kv_heads,
                head_dim=self.model.head_dim,
                dtype=torch.float32,
            )
            for held in layers
        ]

    @torch.inference_mode()
    def seconds(self, batch: PlainBatch, bounds: Sequence[int]) -> np.ndarray:
        """Processor seconds of every run on every stage, [num_stages, num_runs]."""
        found = np.zeros((len(self.parts), len(bounds) - 1))
        for run, piece in enumerate(batch.cut(bounds)):
            stream = None
            for stage, (part, cache) in enumerate(zip(self.parts, self.caches, strict=True)):
                started = time.process_time()
                step = piece.tensors(BLOCK, torch.device("cpu"))
                attend = paged_attend(
                    self.model,
                    cache,
                    step.block_table,
                    step.seq_lens,
                    step.cu_seqlens_q,
                    step.slots,
                    first_layer=part.stack.start,
                )
                stream = part(step.token_ids, step.positions, attend, stream)
                found[stage, run] = time.process_time() - started
        return found

    def least(self, batch: PlainBatch, bounds: Sequence[int], rounds: int) -> np.ndarray:
        """The least of several measurements, run by run."""
        return np.min([self.seconds(batch, bounds) for _ in range(rounds)], axis=0)

    def cost(self, max_len: int, lengths: Sequence[int], rounds: int = 4) -> PieceCost:
        """Fitted to runs of these lengths, first and last in a prompt, on the slower stage."""
        samples = []
        for length in lengths:
            for start in sorted({0, max_len - length}):
                batch = prompt_batch(length, start)
                slowest = float(self.least(batch, [0, length], rounds).max())
                seen = length * start + length * (length + 1) // 2
                samples.append(PieceSample(length, seen, slowest))
        return fit_piece_cost(samples)


def finish_s(seconds: np.ndarray) -> float:
    """When the last stage is done: a run begins once its stage and the stage before are."""
    done = np.zeros(seconds.shape[0])
    for run in range(seconds.shape[1]):
        before = 0.0
        for stage in range(seconds.shape[0]):
            before = done[stage] = max(done[stage], before) + seconds[stage, run]
    return float(done[-1])
