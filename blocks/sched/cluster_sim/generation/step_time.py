"""How long a step of an engine takes, from the profile of its model."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

from blocks.sched.batch import Batch
from blocks.sched.profile.timing import Timing
from blocks.sched.request import State

Seconds = tuple[float, ...]


class Load(NamedTuple):
    """What a step computes.

    num_prompt: prompt tokens.
    chunks: for each prompt chunk that is not its prompt's first, where it begins and its tokens.
    num_decodes: sequences that gain a token.
    context_len: tokens of those sequences, all together.
    """

    num_prompt: int
    chunks: tuple[tuple[int, int], ...]
    num_decodes: int
    context_len: int


def load_of(batch: Batch) -> Load:
    """What a batch of the scheduler computes."""
    num_prompt, num_decodes, context_len = 0, 0, 0
    chunks: list[tuple[int, int]] = []
    for sequence, start, num_tokens, _, _ in batch.entries:
        if sequence.state is State.DECODING:
            num_decodes += 1
            context_len += start + 1
        else:
            num_prompt += num_tokens
            if start:
                chunks.append((start, num_tokens))
    return Load(num_prompt, tuple(chunks), num_decodes, context_len)


class StepTime:
    """Seconds a step takes in each stage.

    A step of decodes alone takes what the profile says of its batch and mean context. A step with
    prompts takes the profile's time for a prompt of all its tokens, decodes counted among them, as
    they go through the same multiplications; on top of that what a long context adds to a decode,
    and for a prompt's later chunks what their attention to the earlier ones adds.

    Args:
        timing: with autoregressive times.
        scale: factor on all times.
    """

    def __init__(self, timing: Timing, scale: float = 1.0) -> None:
        self.timing = timing
        self.scale = scale
        self._least_context = timing.decode_contexts[0]
        self._prefill = functools.lru_cache(maxsize=65536)(timing.prefill_s)

    @property
    def num_stages(self) -> int:
        return self.timing.configuration.pp

    def __call__(self, load: Load) -> Seconds:
        """Seconds of each stage; none for a step that computes nothing."""
        num_prompt, chunks, num_decodes, context_len = load
        parts: list[Seconds] = []
        decode: Seconds = ()
        if num_decodes:
            decode = self.timing.decode_s(num_decodes, context_len / num_decodes)
        if not num_prompt:
            parts.append(decode)
        else:
            parts.append(self._prefill(num_prompt + num_decodes))
            if num_decodes:
                short = self.timing.decode_s(num_decodes, self._least_context)
                parts.append(_more(decode, short))
            for start, num_tokens in chunks:
                upto, before = self._prefill(start + num_tokens), self._prefill(start)
                parts.append(_more(_more(upto, before), self._prefill(num_tokens)))
        return tuple(sum(stage) * self.scale for stage in zip(*parts, strict=True))


def _more(whole: Sequence[float], part: Sequence[float]) -> Seconds:
    return tuple(max(0.0, a - b) for a, b in zip(whole, part, strict=True))
