"""Log-probabilities of prompt tokens, collected chunk by chunk as the prompt is computed."""

from collections.abc import Callable

from torch import Tensor

from recipes.serve.live import Live
from recipes.serve.sampler import token_logprobs

ROWS_AT_ONCE = 64
"""Logits of this many positions exist at a time; a whole prompt's would be vocab-sized times it."""


def score_prompt(
    live: Live,
    start: int,
    hidden: Tensor,
    logits: Callable[[Tensor], Tensor],
) -> None:
    """Fill in the scores that one chunk of the prompt gives.

    Args:
        live: the request; its ``prompt_scores`` are filled in place.
        start: position of the first row of ``hidden``.
        hidden: final hidden states of the chunk [num_tokens, hidden_size].
        logits: the model's head.
    """
    scores, prompt = live.prompt_scores, live.job.prompt_tokens
    assert scores is not None
    num_top = live.job.params.prompt_logprobs or 0
    stop = min(start + hidden.shape[0], len(prompt) - 1)  # position p predicts token p + 1
    for first in range(start, stop, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, stop)
        tokens = prompt[first + 1 : last + 1]
        rows = logits(hidden[first - start : last - start])
        scores[first + 1 : last + 1] = token_logprobs(rows, tokens, [num_top] * len(tokens))
