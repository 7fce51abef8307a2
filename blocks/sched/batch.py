"""What one step computes (`Batch`) and what came of it (`Output`): plain records."""

import dataclasses
from collections import abc
from typing import NamedTuple

from blocks._checks import check
from blocks.sched.request import FinishReason, Sequence


class Entry(NamedTuple):
    """One sequence's share of a step: compute positions ``[start, start + num_tokens)``.

    sequence: whose tokens; ``sequence.tokens[start : start + num_tokens]`` is the input.
    start: first position computed; everything before it is in the cache, or is written by an
        earlier entry of the same batch (see `Batch`).
    num_tokens: positions computed, at least 1.
    num_samples: token ids to draw from the last position: 0 for a prompt chunk that is not the
        last, 1 for a decode, ``request.num_samples`` when a prompt completes for the first time.
    epoch: ``sequence.epoch`` when scheduled.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    num_samples: int
    epoch: int


@dataclasses.dataclass(frozen=True, slots=True)
class Batch:
    """One step's work: decodes first, then prompt chunks, each best first.

    A batch runs whole, entries cancelled since included: an entry may read blocks that another
    entry of the same batch fills, which is sound because every layer writes all new keys and
    values before it attends.

    step: number of the step, from 1.
    entries: one per sequence.
    num_tokens: positions computed in all, never above the token budget.
    preempted: sequences whose blocks were taken back to make room for this batch.
    """

    step: int
    entries: list[Entry]
    num_tokens: int
    preempted: tuple[Sequence, ...] = ()

    def __len__(self) -> int:
        return len(self.entries)

    def check_sampled(self, sampled: abc.Sequence[abc.Sequence[int]]) -> None:
        """Raise ValueError unless there are as many token ids for each entry as it draws."""
        expected = [entry.num_samples for entry in self.entries]
        got = [len(tokens) for tokens in sampled]
        if expected == got:
            return
        check(len(expected) == len(got), "sampled", f"{len(expected)} entries", len(got))
        index = next(i for i in range(len(got)) if expected[i] != got[i])
        check(False, f"sampled[{index}]", f"{expected[index]} token ids", got[index])


class Output(NamedTuple):
    """A token that a sequence gained, or its end.

    sequence: the sequence, already updated.
    token: the new token id; None where the sequence ended without one.
    finish_reason: why the sequence ended; None while it goes on.
    """

    sequence: Sequence
    token: int | None
    finish_reason: FinishReason | None
