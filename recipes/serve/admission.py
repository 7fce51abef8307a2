"""Whether a request can be served at all, decided before it is queued."""

from collections.abc import Sequence

from recipes.serve.sampling_params import SamplingParams


class ContextTooLong(ValueError):
    """Prompt and output cannot fit; carries the numbers for the message.

    limit: tokens of the context. prompt: tokens of the prompt. wanted: output tokens asked for.
    """

    def __init__(self, limit: int, prompt: int, wanted: int | None) -> None:
        asked = f"{prompt} in the prompt" + (f" and {wanted} to generate" if wanted else "")
        super().__init__(
            f"prompt: expected at most {limit} tokens with the output (maximum context length is "
            f"{limit} tokens), got {asked}; shorten it or lower max_tokens"
        )
        self.limit = limit
        self.prompt = prompt
        self.wanted = wanted


def check_prompt(
    prompt: Sequence[int], params: SamplingParams, *, vocab_size: int, max_model_len: int
) -> int:
    """Check a prompt against the model and return the most tokens to generate.

    Args:
        prompt: token ids.
        params: what is asked; its token ids are checked too.
        vocab_size: width of the logits, which every token id must stay below.
        max_model_len: longest prompt plus output [tokens].

    Raises:
        ContextTooLong: prompt and output do not fit.
        ValueError: empty prompt or a token id out of range.
    """
    if not prompt:
        raise ValueError("prompt: expected at least one token, got none")
    if len(prompt) > max_model_len:  # first: the checks below walk the whole prompt
        raise ContextTooLong(max_model_len, len(prompt), None)
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        bad = next(token for token in prompt if not 0 <= token < vocab_size)
        shown = bad if abs(bad) < 10**20 else "a huge number"
        raise ValueError(f"prompt: expected token ids from 0 to {vocab_size - 1}, got {shown}")
    for name in ("stop_token_ids", "logit_bias"):
        bad = [token for token in getattr(params, name) if not 0 <= token < vocab_size]
        if bad:
            raise ValueError(f"{name}: expected token ids below {vocab_size}, got {bad[0]}")
    room = max_model_len - len(prompt)
    wanted = params.max_tokens
    if (wanted or 1) > room:
        raise ContextTooLong(max_model_len, len(prompt), wanted)
    if params.min_tokens > (wanted or room):
        raise ValueError(f"min_tokens: expected at most {wanted or room}, got {params.min_tokens}")
    return wanted or room
