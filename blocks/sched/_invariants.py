"""The numbered invariants of `Scheduler`, asserted with the values that break them."""

from typing import TYPE_CHECKING

from blocks.sched.request import Sequence, State

if TYPE_CHECKING:
    from blocks.sched.scheduler import Scheduler


def check_scheduler(scheduler: "Scheduler") -> None:
    """Assert all invariants of the class docstring. O(live sequences)."""
    roster, counters = scheduler._roster, scheduler.counters
    roster.check_invariants()  # 1
    running, most = roster.num_running, scheduler.max_num_seqs
    assert running <= most, f"2: {running} of at most {most} run"
    _check_in_flight(scheduler)
    for sequence in roster.sequences.values():
        _check_sequence(scheduler, sequence)
    started = counters.num_requests + counters.num_forks
    ended, live = sum(counters.num_finished.values()), len(roster.sequences)
    assert started == ended + live, f"7: {started} started, {ended} ended, {live} live"
    suspects = [sequence for sequence in roster.prefilling if sequence.num_failures]
    assert len(suspects) <= scheduler.suspect_limit, f"8: {scheduler.suspect_limit}, {suspects}"


def _check_sequence(scheduler: "Scheduler", sequence: Sequence) -> None:
    computed, slots, total = sequence.num_computed, sequence.num_slots, len(sequence.tokens)
    if sequence.state is State.WAITING:
        assert computed == slots == sequence.num_scheduled == 0, f"3: {sequence}, {slots} slots"
    elif sequence.state is State.PREFILLING:
        assert computed < total <= slots, f"4: {sequence}, {slots} slots"
    else:
        assert computed == total - 1, f"5: {sequence}"
        assert not sequence.num_failures, f"8: {sequence} gained a token"
    longest = sequence.max_len
    assert total < longest <= scheduler.max_model_len, f"6: {sequence}, max_len {longest}"
    need = scheduler._num_blocks(longest - 1)
    assert need <= scheduler._num_usable_blocks, f"6: {sequence} needs {need} blocks"
    assert sequence.samples_due == 1 or not sequence.num_output, f"6: {sequence} did not fork"


def _check_in_flight(scheduler: "Scheduler") -> None:
    batches = scheduler._in_flight
    assert len(batches) <= scheduler.max_in_flight, f"2: {len(batches)} batches are out"
    reached: dict[Sequence, int] = {}
    for batch in batches:
        total = sum(entry.num_tokens for entry in batch.entries)
        assert 0 < total == batch.num_tokens <= scheduler.token_budget, f"2: {total} tokens"
        assert len({entry.sequence for entry in batch.entries}) == len(batch.entries), f"2: {batch}"
        for sequence, start, num_tokens, _, epoch in batch.entries:
            if sequence.epoch == epoch:
                first, stop = reached.get(sequence, sequence.num_computed), start + num_tokens
                assert start == first < stop <= len(sequence.tokens), f"2: {sequence}"
                reached[sequence] = stop
    for sequence in scheduler._roster.sequences.values():
        stop = reached.get(sequence, sequence.num_computed)
        assert stop == sequence.num_scheduled, f"2: {sequence}, {sequence.num_scheduled} scheduled"
