"""One request at a time, without engine, cache or batch: what every output must equal."""

import functools

import torch

from recipes.model import Decoder, dense_attend


@functools.lru_cache(maxsize=4096)
def greedy(
    decoder: Decoder, prompt: tuple[int, ...], max_tokens: int, eos: int | None
) -> list[int]:
    """Greedy continuation by recomputing the whole sequence for every token."""
    tokens = list(prompt)
    with torch.inference_mode():
        while len(tokens) < len(prompt) + max_tokens:
            bounds = torch.tensor([0, len(tokens)], dtype=torch.int32)
            attend = dense_attend(decoder.config, bounds)
            hidden = decoder(torch.tensor(tokens), torch.arange(len(tokens)), attend)
            tokens.append(int(decoder.logits(hidden[-1:]).argmax()))
            if tokens[-1] == eos:
                break
    return tokens[len(prompt) :]
