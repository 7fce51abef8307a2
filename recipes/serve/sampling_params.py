"""What a caller may ask of the sampler, checked once, at the door."""

import dataclasses
from collections.abc import Mapping

from blocks._checks import check

MAX_SAMPLES = 128
MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_CHARS = 256
MAX_STOP_TOKENS = 64
MAX_BIASED_TOKENS = 1024
MAX_TOKENS = 2**31 - 1
GREEDY_BELOW = 1e-5
"""A temperature below this is greedy; dividing by it would overflow."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the tokens of one request are drawn and when they end.

    max_tokens: most output tokens; None up to the context length.
    temperature: 0 is greedy; 1 samples the model's own distribution.
    top_k, top_p, min_p: keep the k likeliest tokens (0 or -1: all), the smallest set with mass
        p, the tokens with at least min_p of the likeliest one's probability.
    n: samples from one prompt; the prompt's keys and values are computed once.
    seed: makes the draw repeatable; independent of what else is in the batch.
    stop: strings that end the output; the text ends before them.
    stop_token_ids: tokens that end the output, besides the model's own end tokens.
    ignore_eos: go on after the model's end tokens.
    min_tokens: no end token and no stop string counts before this many tokens.
    presence_penalty, frequency_penalty: taken from the logits of tokens in the output, once and
        per occurrence (OpenAI's definition).
    repetition_penalty: divides positive and multiplies negative logits of every token seen in
        prompt or output (Keskar et al. 2019, section 4.1).
    logit_bias: added to the logits of single tokens.
    logprobs: None for none, else how many likeliest tokens to report beside the chosen one.
    prompt_logprobs: the same for every prompt token; the prompt is then computed afresh.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    n: int = 1
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = dataclasses.field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        self._check_kinds()
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        self._check_draw()
        self._check_length()
        self._check_stops()
        self._check_reports()

    def _check_kinds(self) -> None:
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            ok = isinstance(value, list | tuple | set | frozenset)
            check(ok, name, "a list or tuple", type(value).__name__)
        is_map = isinstance(self.logit_bias, Mapping)
        check(is_map, "logit_bias", "a mapping of token ids", type(self.logit_bias).__name__)
        for name in ("ignore_eos", "skip_special_tokens"):
            value = getattr(self, name)
            check(isinstance(value, bool), name, "True or False", repr(value)[:40])

    def _check_draw(self) -> None:
        _check_range("temperature", self.temperature, 0, 10)
        _check_range("top_k", self.top_k, -1, MAX_TOKENS)
        _check_range("top_p", self.top_p, 0, 1)
        _check_range("min_p", self.min_p, 0, 1)
        _check_range("n", self.n, 1, MAX_SAMPLES)
        _check_range("presence_penalty", self.presence_penalty, -2, 2)
        _check_range("frequency_penalty", self.frequency_penalty, -2, 2)
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 10)
        if self.seed is not None:
            _check_range("seed", self.seed, -(2**63), 2**63 - 1)
        check(
            len(self.logit_bias) <= MAX_BIASED_TOKENS,
            "logit_bias",
            f"at most {MAX_BIASED_TOKENS} entries",
            len(self.logit_bias),
        )
        for token, bias in self.logit_bias.items():
            _check_range("logit_bias token", token, 0, MAX_TOKENS)
            _check_range("logit_bias", bias, -100, 100)

    def _check_length(self) -> None:
        if self.max_tokens is not None:
            _check_range("max_tokens", self.max_tokens, 1, MAX_TOKENS)
        limit = MAX_TOKENS if self.max_tokens is None else self.max_tokens
        _check_range("min_tokens", self.min_tokens, 0, limit)

    def _check_stops(self) -> None:
        check(
            len(self.stop) <= MAX_STOP_STRINGS,
            "stop",
            f"at most {MAX_STOP_STRINGS} strings",
            len(self.stop),
        )
        for text in self.stop:
            expected = f"strings of 1 to {MAX_STOP_CHARS} characters"
            check(isinstance(text, str), "stop", expected, type(text).__name__)
            check(1 <= len(text) <= MAX_STOP_CHARS, "stop", expected, f"{len(text)} characters")
        check(
            len(self.stop_token_ids) <= MAX_STOP_TOKENS,
            "stop_token_ids",
            f"at most {MAX_STOP_TOKENS} ids",
            len(self.stop_token_ids),
        )
        for token in self.stop_token_ids:
            _check_range("stop_token_ids", token, 0, MAX_TOKENS)

    def _check_reports(self) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _check_range(name, value, 0, MAX_TOP_LOGPROBS)

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW or self.top_k == 1 or self.top_p == 0

    @property
    def is_plain_greedy(self) -> bool:
        """Argmax of the raw logits is the whole job: nothing edits or reports them."""
        return self.is_greedy and not self.edits_logits and self.logprobs is None

    @property
    def has_penalties(self) -> bool:
        return (
            self.presence_penalty != 0
            or self.frequency_penalty != 0
            or self.repetition_penalty != 1
        )

    @property
    def edits_logits(self) -> bool:
        return self.has_penalties or bool(self.logit_bias) or self.min_tokens > 0


def _check_range(name: str, value: float, low: float, high: float) -> None:
    """Bounds of a client's number; NaN and infinities never pass, booleans are no numbers."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    ok = number and low <= value <= high
    if isinstance(low, int) and name in _INTEGERS:
        ok = ok and isinstance(value, int)
    shown = value if not isinstance(value, int) or abs(value) < 10**20 else "a huge number"
    check(ok, name, f"{low} to {high}", shown)


_INTEGERS = {
    *("top_k", "n", "seed", "max_tokens", "min_tokens", "stop_token_ids"),
    *("logprobs", "prompt_logprobs", "logit_bias token"),
}
