"""``ModelRunner``: what the engine asks of a model, wherever that model runs."""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from blocks.kv import BlockManager
from blocks.sched import Batch
from recipes.model import ModelConfig
from recipes.serve.outputs import TokenLogprob
from recipes.serve.prompt_scores import PromptRows
from recipes.serve.sampler import Draw, Drawn


@dataclasses.dataclass(frozen=True, slots=True)
class StepResult:
    """What came of a step.

    drawn: of every draw its token. scores: of every run of prompt rows the scores, or the error.
    """

    drawn: list[Drawn]
    scores: list[list[TokenLogprob] | str]


class RunnerLost(RuntimeError):
    """The model's processes are gone, and with them all keys and values; the text says why."""


@runtime_checkable
class ModelRunner(Protocol):
    """A model with its cache; met by ``Runner`` here and by ``ParallelRunner`` over processes.

    Batches are computed in the order in which they are submitted, by everybody who holds a part of
    the cache: a block may be given to another sequence while a batch that reads it is under way.
    """

    @property
    def model(self) -> ModelConfig: ...

    @property
    def dtype(self) -> str:
        """Storage dtype of the weights, by its torch name."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Memory of the parameters, all ranks together."""
        ...

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache, the null block included."""
        ...

    @property
    def block_size(self) -> int: ...

    @property
    def depth(self) -> int:
        """Most batches under way at a time."""
        ...

    @property
    def seq_lens(self) -> Tensor | None:
        """Lengths of the last batch's sequences, on the CPU or not; None before the first."""
        ...

    def explain(self) -> str:
        """How many tokens fit and why, and where the model runs."""
        ...

    def begin(self, manager: BlockManager, *, max_num_seqs: int, max_model_len: int) -> None:
        """Follow the block tables of a new manager; what the cache held counts no more, nor does
        what is under way."""
        ...

    def is_lost(self) -> bool:
        """Whether what the cache held is gone; ``begin`` makes it usable again."""
        ...

    def submit(self, batch: Batch, draws: Sequence[Draw], prompts: Sequence[PromptRows]) -> None:
        """Compute a batch, draw tokens from its sampled rows and score rows of prompts; at once, or
        by the time its result is collected.

        To be called right after the batch was scheduled, with fewer than ``depth`` under way.

        Raises:
            RunnerLost: no batch can be computed any more until ``begin``.
            Exception: the batch is not under way; those before it are.
        """
        ...

    def collect(self) -> StepResult:
        """What came of the first of the batches under way, once it is there.

        Raises:
            RunnerLost: as ``submit``.
            Exception: this batch failed; those after it are under way yet.
        """
        ...

    def close(self) -> None:
        """Give back processes and memory; nothing may be run afterwards."""
        ...
