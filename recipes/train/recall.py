"""Letting a trained model speak, and counting the docstrings it has by heart."""

import dataclasses
import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer

from recipes.model import Decoder
from recipes.train import chat
from recipes.train.attend import blocked_attend
from recipes.train.corpus import Pair

MAX_ANSWER_TOKENS = 80
NUM_PROMPTS_AT_ONCE = 32


@dataclasses.dataclass(frozen=True)
class Recall:
    """How many of num_asked names were answered exact, or right in the first 20 characters."""

    num_asked: int
    num_exact: int
    num_begun_right: int


@torch.no_grad()
def complete(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[str]:
    """Continue every prompt until the end token, ``max_tokens`` or the end of the context.

    No cache: every token runs the whole text again, which for a model this small is quick enough
    to look at it. ``recipes.serve`` does it properly.
    """
    end, generator = tokenizer.token_to_id(chat.END), torch.Generator().manual_seed(seed)
    rows = [tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
    starts = [len(row) for row in rows]
    open_rows = set(range(len(rows)))
    limit = decoder.config.max_positions
    for _ in range(max_tokens):
        open_rows = {i for i in open_rows if len(rows[i]) < limit}
        if not open_rows:
            break
        active = sorted(open_rows)
        length = max(len(rows[i]) for i in active)
        tokens = torch.zeros(len(active), length, dtype=torch.int64)
        for place, i in enumerate(active):
            tokens[place, : len(rows[i])] = torch.tensor(rows[i])
        positions = torch.arange(length).repeat(len(active))
        attend = blocked_attend(decoder.config, length)
        hidden = decoder(tokens.flatten(), positions, attend).view(len(active), length, -1)
        last = torch.tensor([len(rows[i]) - 1 for i in active])
        logits = decoder.logits(hidden[torch.arange(len(active)), last]).float()
        if temperature > 0:
            probabilities = (logits / temperature).softmax(-1)
            chosen = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
        else:
            chosen = logits.argmax(-1)
        for i, token in zip(active, chosen.tolist(), strict=True):
            if token == end:
                open_rows.discard(i)
            else:
                rows[i].append(token)
    return [
        tokenizer.decode(row[start:], skip_special_tokens=False)
        for row, start in zip(rows, starts, strict=True)
    ]


def answer(decoder: Decoder, tokenizer: Tokenizer, questions: Sequence[str]) -> list[str]:
    """Greedy answers to chat questions."""
    prompts = [chat.turn("user", question) + chat.ROLES["assistant"] for question in questions]
    answers: list[str] = []
    for start in range(0, len(prompts), NUM_PROMPTS_AT_ONCE):
        some = prompts[start : start + NUM_PROMPTS_AT_ONCE]
        answers += complete(decoder, tokenizer, some, max_tokens=MAX_ANSWER_TOKENS)
    return answers


def measure_recall(
    decoder: Decoder, tokenizer: Tokenizer, pairs: Sequence[Pair], *, num_asked: int, seed: int = 0
) -> Recall:
    """Ask "What does NAME do?" about names drawn without replacement from ``pairs``."""
    asked = random.Random(seed).sample(list(pairs), min(num_asked, len(pairs)))
    answers = answer(decoder, tokenizer, [chat.PLAIN.format(name=pair.name) for pair in asked])
    exact = sum(text == pair.answer for text, pair in zip(answers, asked, strict=True))
    begun = sum(text[:20] == pair.answer[:20] for text, pair in zip(answers, asked, strict=True))
    return Recall(len(asked), exact, begun)
