"""What the engine remembers of a request besides the scheduler's sequences."""

import dataclasses
import os
import secrets
from collections.abc import Callable

from blocks.sched import Entry, FinishReason, Request, Sequence
from recipes.serve.job import Job
from recipes.serve.outputs import Delta, TokenLogprob
from recipes.serve.sampler import SampleState, seed_of
from recipes.serve.text_stream import Detokenizer, TextStream

REASONS = {
    FinishReason.EOS: "stop",
    FinishReason.STOP_TOKEN: "stop",
    FinishReason.LENGTH: "length",
}


@dataclasses.dataclass(slots=True)
class Sample:
    """One of the n samples: its sampling state, its text, and when its last token came [s]."""

    state: SampleState
    text: TextStream
    last_token: float = 0.0
    finished: bool = False

    def show(self, token: int, reason: FinishReason | None) -> str:
        """Text that this token makes visible; a token that ends the sequence has none."""
        text = ""
        if reason in (None, FinishReason.LENGTH):
            enough = self.state.num_output >= self.state.params.min_tokens
            text = self.text.push(token, may_stop=enough)
        if reason is not None and self.text.matched is None:
            text += self.text.finish()
        return text


class Live:
    """A request from ``add`` to its last delta.

    job: what was asked.
    request: what the scheduler is asked.
    samples: the n samples.
    prompt_scores: filled in as the prompt is computed; None where nobody asked.

    Args:
        job: what was asked.
        max_tokens: most tokens that a sample may have.
        eos_token_ids: tokens that end a sample unless the job ignores them.
        detokenizer: makes one; the argument says whether to skip special tokens.
    """

    def __init__(
        self,
        job: Job,
        max_tokens: int,
        eos_token_ids: tuple[int, ...],
        detokenizer: Callable[[bool], Detokenizer],
    ) -> None:
        params, prompt = job.params, job.prompt_tokens
        seed = int.from_bytes(os.urandom(7), "big") if params.seed is None else params.seed
        eos = () if params.ignore_eos else eos_token_ids
        end_tokens = tuple({*params.stop_token_ids, *eos})  # forbidden before ``min_tokens``
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
        self.request = _request(job, max_tokens, eos_token_ids)

    def drawing(self, entry: Entry) -> list[SampleState]:
        """The states that an entry draws for: all samples when its prompt completes."""
        if entry.num_samples == 1:
            return [self.samples[entry.sequence.index].state]
        return [sample.state for sample in self.samples]

    @property
    def done(self) -> bool:
        return all(sample.finished for sample in self.samples)

    def gain(self, sequence: Sequence, token: int, reason: FinishReason | None) -> Delta:
        """What a new token of a sample comes to: its text, and the end where it is the last.

        Args:
            reason: why the sequence ended; None while it goes on, and then a stop string may end
                the sample nevertheless: the delta has a ``finish_reason``.
        """
        sample = self.samples[sequence.index]
        sample.state.tokens = sequence.tokens
        delta = Delta(self.job.request_id, sequence.index, [token], "")
        delta.text = sample.show(token, reason)
        if sequence.num_output == 1:
            delta.num_cached_tokens = sequence.num_cached
            delta.prompt_logprobs = self.prompt_scores
        if sample.text.matched is not None:
            delta.finish_reason, delta.stop_reason = "stop", sample.text.matched
        elif reason is not None:
            delta.finish_reason = REASONS[reason]
            delta.stop_reason = token if reason is FinishReason.STOP_TOKEN else None
        sample.finished = delta.finish_reason is not None
        return delta

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


def _request(job: Job, max_tokens: int, eos_token_ids: tuple[int, ...]) -> Request:
    params, namespace = job.params, job.namespace
    if params.prompt_logprobs is not None:  # every position must be computed, none found
        namespace = f"{namespace}\0{secrets.token_hex(16)}"  # no client's salt equals it
    return Request(
        request_id=job.request_id,
        prompt_tokens=job.prompt_tokens,
        max_tokens=max_tokens,
        num_samples=params.n,
        priority=job.priority,
        eos_token_ids=eos_token_ids,
        stop_token_ids=params.stop_token_ids,
        min_tokens=params.min_tokens,
        ignore_eos=params.ignore_eos,
        namespace=namespace,
    )
