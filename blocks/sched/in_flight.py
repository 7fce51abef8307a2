"""The batches that are out, in the order in which they were scheduled."""

import collections
from collections.abc import Iterable

from blocks.sched.batch import Batch
from blocks.sched.request import Sequence


class InFlight:
    """Batches that were scheduled and are neither updated nor failed yet, the first one first.

    **Invariants**

    1. At most ``max_in_flight`` batches are out, in the order of their steps, none of them empty.
    2. A batch has at most ``token_budget`` tokens and at most one entry per sequence.
    3. The entries of a sequence that still count cover ``num_computed`` to ``num_scheduled``, one
       after another; of a decoding one there is at most one.
    """

    __slots__ = ("_batches", "max_in_flight")

    def __init__(self, max_in_flight: int) -> None:
        self.max_in_flight = max_in_flight
        self._batches: collections.deque[Batch] = collections.deque()

    def __len__(self) -> int:
        return len(self._batches)

    def __contains__(self, batch: Batch) -> bool:
        """Whether this very batch is out; an empty one never is."""
        for out in self._batches:  # noqa: SIM110 (as a generator: 10 % of a small step)
            if out is batch:
                return True
        return False

    def check_room(self) -> None:
        """Raise RuntimeError where another batch is one too many."""
        if len(self._batches) >= self.max_in_flight:
            raise RuntimeError(
                f"schedule: expected at most {self.max_in_flight} batches in flight, got another "
                f"beside step {self._batches[0].step}; pass that to update() or fail() first"
            )

    def check_first(self, batch: Batch) -> None:
        """Raise RuntimeError for a batch that is out, but not the first of those that are."""
        if batch is not self._batches[0]:
            raise RuntimeError(
                f"update: expected step {self._batches[0].step}, the first that is out, got step "
                f"{batch.step}; batches end in the order in which they were scheduled"
            )

    def add(self, batch: Batch) -> None:
        """The batch goes out, after all others."""
        self._batches.append(batch)

    def remove(self, batch: Batch) -> None:
        """The batch is through, or lost."""
        self._batches.remove(batch)

    def live_after(self, batch: Batch) -> list[Sequence]:
        """The live sequences of the batches that were scheduled after this one."""
        return [s for later in self._batches if later.step > batch.step for s in live(later)]

    def check_invariants(self, sequences: Iterable[Sequence], token_budget: int) -> None:
        """Assert invariants 1 to 3 for all live sequences."""
        assert len(self._batches) <= self.max_in_flight, f"1: {len(self._batches)} batches are out"
        last_step = 0
        reached: dict[Sequence, int] = {}
        for batch in self._batches:
            assert batch.step > last_step, f"1: step {batch.step} is out after {last_step}"
            last_step = batch.step
            total = sum(entry.num_tokens for entry in batch.entries)
            assert 0 < total == batch.num_tokens <= token_budget, f"2: {total} tokens"
            scheduled = {entry.sequence for entry in batch.entries}
            assert len(scheduled) == len(batch.entries), f"2: {batch}"
            for sequence, start, num_tokens, _, epoch in batch.entries:
                if sequence.epoch == epoch:
                    first, stop = reached.get(sequence, sequence.num_computed), start + num_tokens
                    assert start == first < stop <= len(sequence.tokens), f"3: {sequence}"
                    reached[sequence] = stop
        for sequence in sequences:
            stop = reached.get(sequence, sequence.num_computed)
            scheduled = sequence.num_scheduled
            assert stop == scheduled, f"3: {sequence}, {scheduled} scheduled"


def live(batch: Batch) -> list[Sequence]:
    """The sequences of a batch that neither ended nor gave way since."""
    return [entry.sequence for entry in batch.entries if entry.sequence.epoch == entry.epoch]
