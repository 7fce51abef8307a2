"""Log-probabilities of prompt tokens, collected chunk by chunk as the prompt is computed."""

import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from recipes.serve.outputs import TokenLogprob
from recipes.serve.sampler import token_logprobs

ROWS_AT_ONCE = 64
"""Logits of this many positions exist at a time; a whole prompt's would be vocab-sized times it."""

log = logging.getLogger("recipes.serve")


class PromptRows(NamedTuple):
    """Rows of a step whose next token is known and wanted scored.

    first: row of the first of them in the step. tokens: the next token of every row.
    num_top: likeliest tokens to report beside it.
    """

    first: int
    tokens: list[int]
    num_top: int


def score_prompts(
    hidden: Tensor, wanted: Sequence[PromptRows], logits: Callable[[Tensor], Tensor]
) -> list[list[TokenLogprob] | str]:
    """The scores of every entry of ``wanted``, or what went wrong; one may fail alone.

    Args:
        hidden: final hidden states of the step [num_tokens, hidden_size].
        logits: the model's head.
    """
    return [_score(hidden, one, logits) for one in wanted]


def _score(
    hidden: Tensor, wanted: PromptRows, logits: Callable[[Tensor], Tensor]
) -> list[TokenLogprob] | str:
    scores: list[TokenLogprob] = []
    error = None
    for start in range(0, len(wanted.tokens), ROWS_AT_ONCE):
        tokens = wanted.tokens[start : start + ROWS_AT_ONCE]
        first = wanted.first + start
        rows = logits(hidden[first : first + len(tokens)])  # all ranks compute it, whatever happens
        if error is None:
            try:
                scores += token_logprobs(rows, tokens, [wanted.num_top] * len(tokens))
            except Exception as caught:
                log.exception("prompt log-probabilities")
                error = f"prompt logprobs: {type(caught).__name__}"
    return scores if error is None else error
