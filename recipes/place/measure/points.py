"""``Points``: which steps of an engine are timed."""

import dataclasses
from collections.abc import Iterator

from blocks._checks import check


@dataclasses.dataclass(frozen=True)
class Points:
    """Prompt lengths, and batches and contexts of decode steps.

    prefill: prompt tokens of a step. batches: sequences of a decode step. contexts: their tokens.
    rounds: times that every point is visited, one point after another.
    decode_steps: steps of each visit to a decode point.
    """

    prefill: tuple[int, ...] = (1, 4, 8, 16, 24, 32, 48, 64, 65, 80, 96, 128, 129, 160, 192, 256)
    batches: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16)
    contexts: tuple[int, ...] = (32, 256)
    rounds: int = 5
    decode_steps: int = 4

    def __post_init__(self) -> None:
        for name in ("prefill", "batches", "contexts"):
            values = getattr(self, name)
            rising = bool(values) and list(values) == sorted(set(values)) and values[0] >= 1
            check(rising, name, "whole numbers from 1, each once, rising", values)
        for name in ("rounds", "decode_steps"):
            value = getattr(self, name)
            check(value >= 1, name, "at least 1", value)

    def within(self, max_model_len: int, token_budget: int, max_num_seqs: int) -> "Points":
        """Those that an engine of these limits can do."""
        room = max_model_len - self.num_drawn(token_budget)
        longest = max(1, min(token_budget, max_model_len - 1))
        return dataclasses.replace(
            self,
            prefill=_upto(self.prefill, longest),
            batches=_upto(self.batches, max_num_seqs),
            contexts=_upto(self.contexts, max(1, room)),
        )

    def num_drawn(self, token_budget: int) -> int:
        """Tokens a sequence draws at most while a decode point is timed, prompts of others included
        that are computed meanwhile."""
        largest = self.batches[-1] * self.contexts[-1]
        return self.decode_steps + 2 + -(-largest // max(1, token_budget - self.batches[-1]))

    def decodes(self) -> Iterator[tuple[int, int]]:
        """Batch size and context of every decode point."""
        for batch in self.batches:
            for context in self.contexts:
                yield batch, context


def _upto(values: tuple[int, ...], most: int) -> tuple[int, ...]:
    return tuple(sorted({min(value, most) for value in values}))
