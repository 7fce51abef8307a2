"""What holds of every batch, whatever happened before."""

from collections.abc import Iterable

from blocks.sched.batch import Batch
from blocks.sched.request import Sequence, State
from blocks.sched.simulate.options import Options


def check_batch(batch: Batch, options: Options) -> None:
    """Assert that it keeps the limits, and computes each sequence once and only what runs."""
    assert sum(entry.num_tokens for entry in batch.entries) == batch.num_tokens
    assert batch.num_tokens <= options.token_budget, batch.num_tokens
    assert len(batch) <= options.max_num_seqs, len(batch)
    scheduled = {entry.sequence for entry in batch.entries}
    assert len(scheduled) == len(batch), "a sequence is in the batch twice"
    assert not scheduled & set(batch.preempted), "a preempted sequence is scheduled"
    for entry in batch.entries:
        sequence = entry.sequence
        assert sequence.state in (State.PREFILLING, State.DECODING), sequence
        is_last = entry.start + entry.num_tokens == len(sequence.tokens)
        assert (entry.num_samples > 0) == is_last, entry


def check_order(batch: Batch, waited: set[int], waiting: Iterable[Sequence]) -> None:
    """Assert that the worst gave way or the best came in, and never both in one step.

    Args:
        waited: ids of those who waited before the batch was scheduled.
        waiting: those who wait now.
    """
    admitted = [e.sequence for e in batch.entries if e.sequence.sequence_id in waited]
    running = [e.sequence for e in batch.entries if e.sequence.sequence_id not in waited]
    for victim in batch.preempted:
        assert all(sequence.key < victim.key for sequence in running), victim
        assert not admitted, f"{admitted} came in while {victim} gave way"
    for sequence in admitted:
        best = min((other.key for other in waiting), default=(float("inf"),))
        assert sequence.key < best, f"{sequence} came in out of turn"
