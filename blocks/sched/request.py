"""What is asked (`Request`) and what the scheduler makes of it (`Sequence`).

A request is a frozen record that the caller writes. A sequence is one sample of it: its tokens, how
many of them have keys and values in the cache, and where it stands. Only the scheduler changes a
sequence; everybody else reads.
"""

import dataclasses
import enum
from collections import abc
from typing import Any

from blocks._checks import check, check_count, fail, is_number


class State(enum.Enum):
    """Where a sequence stands; PREFILLING and DECODING together are *running*.

    WAITING -> PREFILLING -> DECODING -> FINISHED, with a way back to WAITING from both running
    states (preemption, failed step) and a way to FINISHED from everywhere.
    """

    WAITING = "waiting"
    PREFILLING = "prefilling"
    DECODING = "decoding"
    FINISHED = "finished"


class FinishReason(enum.StrEnum):
    """Why a sequence ended."""

    EOS = "eos"
    STOP_TOKEN = "stop_token"
    STOP_STRING = "stop_string"
    LENGTH = "length"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One generation job, as the caller states it.

    request_id: unique among the requests that are not finished yet.
    prompt_tokens: token ids, at least one.
    max_tokens: most tokens to generate per sample, at least 1.
    num_samples: independent continuations of the prompt; they share its cache blocks.
    priority: smaller runs first under the ``priority`` policy.
    eos_token_ids: tokens that end a sample, unless ``ignore_eos``.
    stop_token_ids: further tokens that end a sample.
    min_tokens: eos and stop tokens do not end a sample before it has this many tokens.
    ignore_eos: generate past ``eos_token_ids``.
    namespace: prefix-cache namespace; blocks are never shared between two of them.
    arrival: when the caller got it, in seconds on the scheduler's clock, for latency metrics; None
        lets the scheduler stamp it. The scheduling order goes by the time of `Scheduler.add`.
    """

    request_id: str
    prompt_tokens: abc.Sequence[int]
    max_tokens: int
    num_samples: int = 1
    priority: int = 0
    eos_token_ids: abc.Collection[int] = ()
    stop_token_ids: abc.Collection[int] = ()
    min_tokens: int = 0
    ignore_eos: bool = False
    namespace: str = ""
    arrival: float | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.request_id, str) and self.request_id):
            raise fail("request_id", "a non-empty string", repr(self.request_id))
        if not hasattr(self.prompt_tokens, "__len__") or isinstance(self.prompt_tokens, str):
            raise fail("prompt_tokens", "a sequence of token ids", repr(self.prompt_tokens))
        check(len(self.prompt_tokens) > 0, "prompt_tokens", "at least one token", "none")
        for name in ("eos_token_ids", "stop_token_ids"):
            ids = getattr(self, name)
            known = type(ids) is tuple or isinstance(ids, abc.Collection)  # the first is quick
            if not known or isinstance(ids, str):
                raise fail(name, "a collection of token ids", repr(ids))
        check_count("max_tokens", self.max_tokens)
        check_count("num_samples", self.num_samples)
        check_count("min_tokens", self.min_tokens, least=0)
        if self.min_tokens > self.max_tokens:
            raise fail("min_tokens", f"at most max_tokens ({self.max_tokens})", self.min_tokens)
        check(is_number(self.priority), "priority", "a number, smaller first", self.priority)
        check(isinstance(self.namespace, str), "namespace", "a string", self.namespace)
        known = self.arrival is None or is_number(self.arrival)
        check(known, "arrival", "seconds on the scheduler's clock, or None", self.arrival)


class Sequence:
    """One sample of a request while it is served. Compared and hashed by identity.

    sequence_id: unique over the life of the scheduler; names the sequence to the allocator.
    request: what was asked.
    index: which of ``request.num_samples`` this is, from 0.
    tokens: prompt then output token ids.
    num_prompt: tokens of the prompt.
    num_computed: leading tokens whose keys and values are in the cache, as of the last update.
    num_scheduled: leading tokens computed or to be computed by batches that are out.
    num_slots: leading positions that can be written without asking the allocator.
    state: see `State`.
    epoch: grows whenever the blocks are given up; a batch entry of an older epoch is stale.
    key: position in the scheduling order, smaller first; unique.
    max_len: tokens at which it ends for length.
    stop_tokens: every token id that ends it.
    samples_due: tokens to draw when its prompt completes: ``num_samples`` until the fork, then 1.
    num_failures: failed steps it is suspected of since it last gained a token.
    num_cached: tokens of the last admission that came from the prefix cache.
    num_preemptions: times its blocks were taken back for want of memory.
    arrival, first_scheduled, first_token, finished: seconds on the scheduler's clock, None before.
    finish_reason: None until FINISHED.
    """

    __slots__ = (
        "arrival",
        "epoch",
        "finish_reason",
        "finished",
        "first_scheduled",
        "first_token",
        "index",
        "key",
        "max_len",
        "num_cached",
        "num_computed",
        "num_failures",
        "num_preemptions",
        "num_prompt",
        "num_scheduled",
        "num_slots",
        "request",
        "samples_due",
        "sequence_id",
        "state",
        "stop_tokens",
        "tokens",
    )

    def __init__(self, sequence_id: int, request: Request, order: tuple[Any, int], arrival: float):
        self.sequence_id = sequence_id
        self.request = request
        self.index = 0
        self.tokens = list(request.prompt_tokens)
        self.num_prompt = len(self.tokens)
        self.num_computed = 0
        self.num_scheduled = 0
        self.num_slots = 0
        self.state = State.WAITING
        self.epoch = 0
        self.key: tuple[Any, int, int] = (*order, 0)
        self.max_len = self.num_prompt + request.max_tokens
        eos = () if request.ignore_eos else request.eos_token_ids
        self.stop_tokens = frozenset((*eos, *request.stop_token_ids))
        self.samples_due = request.num_samples
        self.num_failures = 0
        self.num_cached = 0
        self.num_preemptions = 0
        self.arrival = arrival
        self.first_scheduled: float | None = None
        self.first_token: float | None = None
        self.finished: float | None = None
        self.finish_reason: FinishReason | None = None

    def sibling(self, sequence_id: int, index: int) -> "Sequence":
        """Sample ``index`` of the same request: the same prompt and history, nothing generated."""
        twin = Sequence(sequence_id, self.request, self.key[:2], self.arrival)
        twin.index = index
        twin.key = (*self.key[:2], index)
        twin.samples_due = 1
        twin.num_cached = self.num_cached
        twin.first_scheduled = self.first_scheduled
        return twin

    @property
    def num_output(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - self.num_prompt

    @property
    def output_tokens(self) -> list[int]:
        """Token ids generated so far (a copy)."""
        return self.tokens[self.num_prompt :]

    def stop_reason(self, token: int) -> FinishReason | None:
        """Whether the sequence, which now ends in ``token``, is over, and why.

        Order: end of sequence, stop token, length; before ``min_tokens`` only length counts.
        """
        if token in self.stop_tokens and self.num_output >= self.request.min_tokens:
            request = self.request
            is_eos = token in request.eos_token_ids and not request.ignore_eos
            return FinishReason.EOS if is_eos else FinishReason.STOP_TOKEN
        return FinishReason.LENGTH if len(self.tokens) >= self.max_len else None

    def __repr__(self) -> str:
        return (
            f"Sequence({self.sequence_id}, {self.request.request_id!r}[{self.index}], "
            f"{self.state.value}, {self.num_computed}/{len(self.tokens)} computed)"
        )
