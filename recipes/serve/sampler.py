"""Logits to tokens: each row edited, drawn and reported as its own request asks.

Plain greedy rows take one argmax over the logits as they are; only the others pay for fp32 copies.
A row that cannot be sampled (NaN, no finite logit, an error) fails alone.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from blocks.ops import add_logit_bias, apply_penalties, sample, top_logprobs
from recipes.serve.outputs import TokenLogprob
from recipes.serve.sampling_params import SamplingParams

_SEED_STEP = 0x9E3779B97F4A7C15


def seed_of(seed: int, index: int) -> int:
    """The seed of sample ``index``: sample 0 uses the request's own."""
    mixed = (seed + index * _SEED_STEP) & (2**64 - 1)
    return mixed - 2**64 if mixed >= 2**63 else mixed


class SampleState:
    """What sampling remembers of one sequence.

    params: of its request. seed: of this sample. tokens: the sequence's live token list.
    num_prompt: prompt tokens at its head. banned: tokens forbidden before ``min_tokens``.
    """

    __slots__ = ("_counted", "_counts", "banned", "num_prompt", "params", "plain", "seed", "tokens")

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        tokens: Sequence[int],
        num_prompt: int,
        banned: Sequence[int],
    ) -> None:
        self.params = params
        self.seed = seed
        self.tokens = tokens
        self.num_prompt = num_prompt
        self.banned = banned
        self.plain = params.is_plain_greedy
        self._counts: dict[int, int] = {}
        self._counted = 0

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - self.num_prompt

    def counts(self) -> dict[int, int]:
        """Occurrences in the output of every token seen; prompt tokens count 0. O(new tokens)."""
        counts, stop = self._counts, len(self.tokens)
        for position in range(self._counted, stop):
            token = self.tokens[position]
            counts[token] = counts.get(token, 0) + (position >= self.num_prompt)
        self._counted = stop
        return counts


class Drawing(Protocol):
    """What a draw asks of a sequence; ``SampleState`` here, a copy of it in another process."""

    @property
    def params(self) -> SamplingParams: ...
    @property
    def plain(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def banned(self) -> Sequence[int]: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_output(self) -> int: ...
    def counts(self) -> Mapping[int, int]: ...


class Draw(NamedTuple):
    """One token to draw: from which row of the logits, for which sequence."""

    row: int
    state: Drawing


@dataclasses.dataclass(slots=True)
class Drawn:
    """A drawn token, or why there is none. logprob: only if the request asked for it."""

    token: int
    logprob: TokenLogprob | None = None
    error: str | None = None


def draw(logits: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    """Draw every token; an exception on the way costs only the rows that cause it."""
    if not draws:
        return []
    try:
        return _draw(logits, draws)
    except Exception as error:  # the boundary between one request and the others
        if len(draws) == 1:
            return [Drawn(0, error=f"sampling failed: {type(error).__name__}: {error}"[:300])]
    return [drawn for one in draws for drawn in draw(logits, [one])]


def _draw(logits: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    plain = [at for at, one in enumerate(draws) if one.state.plain]
    if len(plain) == len(draws):
        return _argmax(_rows(logits, draws))
    if not plain:
        return _edit_and_draw(_rows(logits, draws), draws)
    drawn: list[Drawn | None] = [None] * len(draws)
    rest = [at for at, one in enumerate(draws) if not one.state.plain]
    for part in (plain, rest):
        chosen = [draws[at] for at in part]
        for at, one in zip(part, _draw(logits, chosen), strict=True):
            drawn[at] = one
    return [one for one in drawn if one is not None]


def _rows(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    rows = [one.row for one in draws]
    if rows == list(range(logits.shape[0])):
        return logits
    return logits[torch.tensor(rows, device=logits.device)]


def _argmax(logits: Tensor) -> list[Drawn]:
    top, tokens = logits.max(-1)  # a NaN anywhere in the row comes out as the maximum
    return _checked(tokens, top)


def _checked(tokens: Tensor, top: Tensor) -> list[Drawn]:
    """Drawn tokens; a row whose largest logit is not finite has none."""
    drawn = [Drawn(token) for token in tokens.tolist()]
    for one, value in zip(drawn, top.tolist(), strict=True):
        if not math.isfinite(value):
            one.token = 0
            one.error = "the model gave no finite score for the next token"
    return drawn


def _edit_and_draw(logits: Tensor, draws: Sequence[Draw]) -> list[Drawn]:
    states = [one.state for one in draws]
    edited = [at for at, state in enumerate(states) if state.params.edits_logits]
    scores = logits.to(torch.float32, copy=bool(edited))
    _edit(scores, states, edited)
    top = scores.amax(-1)
    params = [state.params for state in states]
    greedy = [p.is_greedy for p in params]
    tokens = sample(
        scores,
        temperature=[0.0 if g else p.temperature for p, g in zip(params, greedy, strict=True)],
        top_k=[max(p.top_k, 0) for p in params],
        top_p=[1.0 if g else p.top_p for p, g in zip(params, greedy, strict=True)],
        min_p=[p.min_p for p in params],
        seeds=[state.seed for state in states],
        positions=[state.num_tokens for state in states],
    )
    drawn = _checked(tokens, top)
    wanted = [at for at, p in enumerate(params) if p.logprobs is not None]
    if wanted:
        _report(logits, drawn, params, wanted)
    return drawn


def _report(
    logits: Tensor, drawn: list[Drawn], params: list[SamplingParams], wanted: list[int]
) -> None:
    raw = logits if len(wanted) == len(drawn) else logits[wanted]
    counts = [params[at].logprobs or 0 for at in wanted]
    reports = token_logprobs(raw, [drawn[at].token for at in wanted], counts)
    for at, report in zip(wanted, reports, strict=True):
        drawn[at].logprob = report


def token_logprobs(
    logits: Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprob]:
    """Report each row's token and its ``num_top`` likeliest, from the raw logits."""
    width = min(max(num_top), logits.shape[-1])
    found = top_logprobs(logits, torch.tensor(token_ids, device=logits.device), width)
    chosen, top, top_ids = found.chosen.tolist(), found.top.tolist(), found.top_ids.tolist()
    return [
        TokenLogprob(token, chosen[at], list(zip(top_ids[at][:k], top[at][:k], strict=True)))
        for at, (token, k) in enumerate(zip(token_ids, num_top, strict=True))
    ]


def _edit(scores: Tensor, states: list[Drawing], edited: list[int]) -> None:
    """Penalties, then biases, then the ban on ending early; in place."""
    penalised = [at for at in edited if states[at].params.has_penalties]
    if penalised:
        _penalise(scores, states, penalised)
    rows: list[int] = []
    tokens: list[int] = []
    values: list[float] = []
    for at in edited:
        bias = dict(states[at].params.logit_bias)
        if states[at].num_output < states[at].params.min_tokens:
            bias |= dict.fromkeys(states[at].banned, -math.inf)
        rows += [at] * len(bias)
        tokens += bias.keys()
        values += bias.values()
    if rows:
        device = scores.device
        index = torch.tensor([rows, tokens], device=device)
        add_logit_bias(scores, index[0], index[1], torch.tensor(values, device=device))


def _penalise(scores: Tensor, states: list[Drawing], penalised: list[int]) -> None:
    rows: list[int] = []
    tokens: list[int] = []
    counts: list[int] = []
    for at in penalised:
        seen = states[at].counts()
        rows += [at] * len(seen)
        tokens += seen.keys()
        counts += seen.values()
    params = [state.params for state in states]

    def per_row(name: str, neutral: float) -> Tensor:
        values = [getattr(p, name) if p.has_penalties else neutral for p in params]
        return torch.tensor(values, device=scores.device)

    index = torch.tensor([rows, tokens, counts], device=scores.device)
    apply_penalties(
        scores,
        *index,
        repetition=per_row("repetition_penalty", 1.0),
        presence=per_row("presence_penalty", 0.0),
        frequency=per_row("frequency_penalty", 0.0),
    )
