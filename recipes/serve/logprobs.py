"""Log-probabilities in the two shapes of the API."""

from collections.abc import Sequence
from typing import Any

from recipes.model.tokenizer import Tokenizer
from recipes.serve.outputs import TokenLogprob

LOWEST = -9999.0
"""Stands for minus infinity, which JSON has not."""


def chat_logprobs(tokens: Sequence[TokenLogprob], tokenizer: Tokenizer) -> dict[str, Any]:
    """``choices[].logprobs`` of chat completions."""
    content = []
    for token in tokens:
        entry = _entry(token.token_id, token.logprob, tokenizer)
        entry["top_logprobs"] = [
            _entry(token_id, value, tokenizer) for token_id, value in token.top
        ]
        content.append(entry)
    return {"content": content, "refusal": None}


def _entry(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    raw = tokenizer.token_bytes(token_id)
    text = raw.decode(errors="replace")
    return {"token": text, "logprob": _finite(logprob), "bytes": list(raw)}


def completion_logprobs(
    tokens: Sequence[TokenLogprob | None],
    token_ids: Sequence[int],
    tokenizer: Tokenizer,
    offset: int,
) -> dict[str, Any]:
    """``choices[].logprobs`` of text completions.

    Args:
        tokens: one entry per token; None for a prompt's first token, which nothing predicts.
        token_ids: the same tokens' ids.
        tokenizer: for their texts.
        offset: characters of the text before the first of them.
    """
    texts = [_text(token_id, tokenizer) for token_id in token_ids]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [None if t is None else _finite(t.logprob) for t in tokens],
        "top_logprobs": [None if t is None else _top(t, tokenizer) for t in tokens],
        "text_offset": offsets,
    }


def _top(token: TokenLogprob, tokenizer: Tokenizer) -> dict[str, float]:
    pairs = [(token.token_id, token.logprob), *token.top]
    return {_text(token_id, tokenizer): _finite(value) for token_id, value in reversed(pairs)}


def _text(token_id: int, tokenizer: Tokenizer) -> str:
    return tokenizer.token_bytes(token_id).decode(errors="replace")


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST
