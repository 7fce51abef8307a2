"""What the engine remembers of a request besides the scheduler's sequences."""

import dataclasses
from collections.abc import Callable, Sequence

from blocks.sched import Entry
from recipes.serve.job import Job
from recipes.serve.outputs import Delta, TokenLogprob
from recipes.serve.sampler import SampleState, seed_of
from recipes.serve.text_stream import Detokenizer, TextStream


@dataclasses.dataclass(slots=True)
class Sample:
    """One of the n samples: its sampling state, its text, and when its last token came [s]."""

    state: SampleState
    text: TextStream
    last_token: float = 0.0
    finished: bool = False


class Live:
    """A request from ``add`` to its last delta.

    Args:
        job: what was asked.
        seed: of sample 0.
        end_tokens: tokens that may end a sample, forbidden before ``min_tokens``.
        detokenizer: makes one; the argument says whether to skip special tokens.
    """

    def __init__(
        self,
        job: Job,
        seed: int,
        end_tokens: Sequence[int],
        detokenizer: Callable[[bool], Detokenizer],
    ) -> None:
        params, prompt = job.params, job.prompt_tokens
        self.job = job
        self.samples = [
            Sample(
                SampleState(params, seed_of(seed, index), prompt, len(prompt), end_tokens),
                TextStream(detokenizer(params.skip_special_tokens), params.stop),
            )
            for index in range(params.n)
        ]
        scored = params.prompt_logprobs is not None
        self.prompt_scores: list[TokenLogprob | None] | None = (
            [None for _ in prompt] if scored else None
        )

    def drawing(self, entry: Entry) -> list[SampleState]:
        """The states that an entry draws for: all samples when its prompt completes."""
        if entry.num_samples == 1:
            return [self.samples[entry.sequence.index].state]
        return [sample.state for sample in self.samples]

    @property
    def done(self) -> bool:
        return all(sample.finished for sample in self.samples)

    def fail(self, error: str, *, lost: bool = False) -> list[Delta]:
        """The last deltas of the samples that have not finished; ``lost`` as in ``Delta``."""
        deltas = []
        for index, sample in enumerate(self.samples):
            if not sample.finished:
                sample.finished = True
                delta = Delta(self.job.request_id, index, [], "", lost=lost)
                delta.finish_reason, delta.error = "error", error
                deltas.append(delta)
        return deltas
