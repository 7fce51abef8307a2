"""What the engine reports: one delta per sequence and step, and the sum of them."""

import dataclasses
from typing import NamedTuple


class TokenLogprob(NamedTuple):
    """A token's natural-log probability under the model, and the likeliest ones beside it.

    token_id: the token [id]. logprob: of the raw distribution, before temperature and penalties.
    top: the likeliest tokens, best first [(id, logprob)].
    """

    token_id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclasses.dataclass(slots=True)
class Delta:
    """What one step added to one sequence.

    request_id: whose. index: which of the n samples.
    token_ids: new tokens. text: new visible text (may lag behind the tokens).
    logprobs: of the tokens whose text is now visible or dropped; None when not asked for.
    finish_reason: ``stop``, ``length``, ``cancelled`` or ``error``; None while it runs.
    stop_reason: the stop string or stop token that ended it.
    error: what went wrong, with finish_reason ``error``.
    prompt_logprobs: with a request's first delta when asked for; the first entry is None.
    num_cached_tokens: prompt tokens whose keys and values were found in the cache.
    lost: with ``error``: what computed it is gone, and the same may be asked again.
    """

    request_id: str
    index: int
    token_ids: list[int]
    text: str
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0
    lost: bool = False


@dataclasses.dataclass(slots=True)
class Completion:
    """All deltas of one sequence together."""

    index: int
    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[TokenLogprob] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None

    def add(self, delta: Delta) -> None:
        self.text += delta.text
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs = (self.logprobs or []) + delta.logprobs
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason
        self.error = delta.error


@dataclasses.dataclass(slots=True)
class RequestOutput:
    """The finished answer to one prompt: ``completions[i]`` is sample i."""

    request_id: str
    prompt_token_ids: list[int]
    completions: list[Completion]
    prompt_logprobs: list[TokenLogprob | None] | None = None
    num_cached_tokens: int = 0

    @property
    def text(self) -> str:
        """Text of the first sample."""
        return self.completions[0].text

    @property
    def token_ids(self) -> list[int]:
        """Tokens of the first sample."""
        return self.completions[0].token_ids

    @property
    def finished(self) -> bool:
        return all(completion.finish_reason for completion in self.completions)

    def add(self, delta: Delta) -> None:
        self.completions[delta.index].add(delta)
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
