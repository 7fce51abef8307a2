"""The token-budget loop: who runs next, and who gives way when cache blocks run short."""

import collections
import time
from collections import abc
from collections.abc import Callable

from blocks._checks import check
from blocks.sched._invariants import check_scheduler
from blocks.sched.admission import QueueBound, QueueFull, Unservable, check_servable
from blocks.sched.allocator import Allocator
from blocks.sched.batch import Batch, Entry, Output
from blocks.sched.counters import Counters
from blocks.sched.policy import Policy, choose_policy
from blocks.sched.request import FinishReason, Request, Sequence, State
from blocks.sched.roster import Roster


class Scheduler:
    """Decides what each step computes. One step is `schedule`, run, `update` (or `fail`).

    A step gives every decoding sequence one token, then spends the rest of the token budget on
    prompts: first those already running, then waiting ones, best key first. A waiting sequence that
    does not fit holds back those behind it. A decode that needs a block while none is free takes
    it from the running sequence with the largest key, which goes back to waiting and is recomputed
    later; a step that preempted admits nobody. The samples of a request are scheduled, preempted
    and finished one by one.

    Up to ``max_in_flight`` batches may be out at a time, as a pipeline of stages wants them. A
    decoding sequence is in one of them at most, for its next token must be known; chunks of a
    prompt may follow one another. A step then takes no more than its share of the decoding
    sequences, so that the other batches have theirs. What a batch reads is given to others at once
    when its sequences end or give way: **whoever computes the batches must do so in the order in
    which they were scheduled**, on every device that holds a part of the cache.

    Why every accepted request finishes: keys are fixed and unique, so of all running sequences one
    is best. It is never preempted, for alone it fits (checked by `add`) and everyone else gives way
    first; and it is in every step that is scheduled while it is in no other, for the budget holds
    one token per running sequence. So it finishes; when nothing runs, the best waiting sequence is
    admitted.

    **Invariants**

    1. Those of the `Roster`: every live sequence is in the one queue of its state, by key.
    2. At most ``max_num_seqs`` sequences run and ``max_in_flight`` batches are out; a batch has at
       most ``token_budget`` tokens and at most one entry per sequence. The entries of a sequence
       that are out cover ``num_computed`` to ``num_scheduled``; of a decoding one there is at most
       one.
    3. A waiting sequence holds nothing: no blocks, no position computed or scheduled, no slot.
    4. A prefilling sequence has slots for all its tokens and at least one left to compute.
    5. A decoding sequence has all but its last token computed.
    6. A live sequence is shorter than its ``max_len`` and would fit into an empty pool.
    7. Every sequence ever started is live or finished.
    8. At most ``suspect_limit`` sequences suspected of a failed step run at a time.

    Costs: a step is O(running) with a small constant; an admission, preemption or end is
    O(log n) plus a list shift. Not thread-safe. Imports no torch.

    Args:
        allocator: owner of the cache blocks; nobody else may use the same sequence ids.
        token_budget: most tokens computed per step, at least ``max_num_seqs``.
        max_num_seqs: most sequences running at a time.
        max_model_len: most tokens a sequence may have, prompt and output.
        policy: ``"fcfs"``, ``"priority"`` or a function (see `blocks.sched.policy`).
        clock: returns seconds; may jump, order is kept.
        max_waiting: most sequences waiting before `add` refuses; None for no bound.
        max_waiting_tokens: most tokens waiting before `add` refuses; None for no bound.
        watermark: share of the usable blocks kept free at admission while others run, so that
            a newcomer does not take the blocks that running sequences need next.
        max_failures: failed steps after which a sequence found to be the only suspect is ended.
        max_in_flight: most batches that are out at a time, scheduled and not yet updated.
    """

    def __init__(
        self,
        allocator: Allocator,
        *,
        token_budget: int,
        max_num_seqs: int,
        max_model_len: int,
        policy: str | Policy = "fcfs",
        clock: Callable[[], float] = time.monotonic,
        max_waiting: int | None = None,
        max_waiting_tokens: int | None = None,
        watermark: float = 0.01,
        max_failures: int = 2,
        max_in_flight: int = 1,
    ) -> None:
        check(max_num_seqs >= 1, "max_num_seqs", "at least 1", max_num_seqs)
        check(
            token_budget >= max_num_seqs,
            "token_budget",
            f"at least max_num_seqs ({max_num_seqs}), so that every running sequence can go on",
            token_budget,
        )
        check(max_model_len >= 2, "max_model_len", "at least 2 (prompt and output)", max_model_len)
        check(0 <= watermark < 1, "watermark", "a share in [0, 1)", watermark)
        check(max_failures >= 1, "max_failures", "at least 1", max_failures)
        check(max_in_flight >= 1, "max_in_flight", "at least 1", max_in_flight)
        self.allocator = allocator
        self.token_budget = token_budget
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len
        self.queue_bound = QueueBound(max_waiting, max_waiting_tokens)
        self.max_failures = max_failures
        self.max_in_flight = max_in_flight
        self.suspect_limit = max_num_seqs
        self.counters = Counters()
        self._policy = choose_policy(policy)
        self._clock = clock
        self._block_size = allocator.block_size
        self._num_usable_blocks = allocator.num_usable_blocks
        self._reserve = int(watermark * self._num_usable_blocks)
        self._roster = Roster()
        self._next_id = 0
        self._last_arrival = float("-inf")
        self._in_flight: collections.deque[Batch] = collections.deque()
        self._blocked: tuple[int, int] | None = None

    # --- gauges ---------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return self._roster.num_running

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for admission, preempted ones included."""
        return len(self._roster.waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of the waiting sequences."""
        return self._roster.num_waiting_tokens

    @property
    def num_in_flight(self) -> int:
        """Batches that are out."""
        return len(self._in_flight)

    @property
    def num_requests(self) -> int:
        """Requests that are not finished."""
        return len(self._roster.requests)

    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._roster.requests)

    def sequences(self, request_id: str) -> list[Sequence]:
        """The unfinished samples of a request; empty when it is finished or unknown."""
        return list(self._roster.requests.get(request_id, ()))

    # --- requests come and go -------------------------------------------------------------------

    def add(self, request: Request) -> Sequence:
        """Queue a request; returns its first sample (the others start when the prompt is done).

        Raises:
            Unservable: it could never fit into the model's context or the cache.
            QueueFull: too much is waiting; nothing has changed.
            ValueError: a request of this id is live.
        """
        check(
            request.request_id not in self._roster.requests,
            "request_id",
            "one that is not in use",
            repr(request.request_id),
        )
        self._check_acceptable(request)
        now = self._clock()
        self._last_arrival = max(self._last_arrival, now)
        rank = self._policy(request, self._last_arrival)
        check(rank == rank, "policy key", "something ordered", rank, "mend the policy function")
        arrival = now if request.arrival is None else request.arrival
        order = (rank, self.counters.num_requests)
        sequence = Sequence(self._new_id(), request, order, arrival)
        self._roster.add(sequence, State.WAITING)
        self.counters.num_requests += 1
        return sequence

    def cancel(self, request_id: str) -> bool:
        """End a request now, whatever it is doing; False when it is finished or unknown."""
        sequences = self.sequences(request_id)
        for sequence in sequences:
            self._finish(sequence, FinishReason.CANCELLED, self._clock())
        return bool(sequences)

    def stop(self, sequence_id: int, reason: FinishReason = FinishReason.STOP_STRING) -> bool:
        """End one sample, for a reason that the caller found; False when it is already over.

        A request whose prompt is not complete yet ends whole with its first sample.
        """
        sequence = self._roster.sequences.get(sequence_id)
        if sequence is None:
            return False
        self._finish(sequence, reason, self._clock())
        return True

    # --- a step ---------------------------------------------------------------------------------

    def schedule(self, num_batches: int | None = None) -> Batch:
        """Decide the next step; its blocks are claimed when this returns.

        Sequences that decode are divided evenly over ``num_batches``, ``max_in_flight`` by default.

        Raises RuntimeError while ``max_in_flight`` batches are out: the first of them must be given
        to `update` or `fail` first. An empty batch (nothing to do, or nothing can be done before
        another batch is through) needs neither.
        """
        if len(self._in_flight) >= self.max_in_flight:
            raise RuntimeError(
                f"schedule: expected at most {self.max_in_flight} batches in flight, got another "
                f"beside step {self._in_flight[0].step}; pass that to update() or fail() first"
            )
        entries: list[Entry] = []
        preempted = self._schedule_decodes(entries, num_batches or self.max_in_flight)
        budget = self._schedule_prefills(entries, self.token_budget - len(entries))
        if not preempted:
            budget = self._admit(entries, budget)
        counters = self.counters
        counters.num_steps += 1
        counters.num_scheduled_tokens += self.token_budget - budget
        batch = Batch(counters.num_steps, entries, self.token_budget - budget, tuple(preempted))
        if entries:
            self._in_flight.append(batch)
        return batch

    def update(self, batch: Batch, sampled: abc.Sequence[abc.Sequence[int]]) -> list[Output]:
        """Take in what a step drew: ``sampled[i]`` holds ``entries[i].num_samples`` token ids.

        Returns the tokens gained, in batch order, samples of one request in index order. Entries
        of sequences that ended or gave way meanwhile are dropped, and so is a batch that is not in
        flight (late or twice).

        Raises RuntimeError for a batch that is out, but not the first of those that are.
        """
        if not self._is_out(batch):
            return []
        if batch is not self._in_flight[0]:
            raise RuntimeError(
                f"update: expected step {self._in_flight[0].step}, the first that is out, got step "
                f"{batch.step}; batches end in the order in which they were scheduled"
            )
        entries = batch.entries
        self._check_sampled(entries, sampled)
        self._in_flight.popleft()
        now = self._clock()
        outputs: list[Output] = []
        for (sequence, start, num_tokens, num_samples, epoch), tokens in zip(
            entries, sampled, strict=True
        ):
            if sequence.epoch != epoch:
                self.counters.num_stale_entries += 1
                continue
            sequence.num_computed = start + num_tokens
            if num_samples == 0:
                continue
            token = tokens[0]
            sequence.tokens.append(token)
            reason = None
            if token in sequence.stop_tokens or len(sequence.tokens) >= sequence.max_len:
                reason = sequence.stop_reason(token)
            outputs.append(Output(sequence, token, reason))
            if sequence.state is State.PREFILLING:
                self._complete_prompt(sequence, tokens, outputs, now)
            if reason is not None:
                self._finish(sequence, reason, now)
        self.counters.num_generated_tokens += len(outputs)
        return outputs

    def fail(self, batch: Batch) -> list[Output]:
        """The step raised or was lost: all its sequences go back to waiting and are recomputed.

        So do those of batches scheduled after it that are out: they may read what it was to write.
        Those batches stay out; their `update` or `fail` finds nothing to do.

        To find a request that breaks every step it is in, the sequences of a failed step become
        suspects, and half as many of them run at a time after each further failure, until each has
        gained a token; a suspect that fails as the only one, more than ``max_failures`` times in
        all, is ended. Returns such ends. The step must not be running any more.
        """
        if not self._is_out(batch):
            return []
        self.counters.num_failed_steps += 1
        live = _live(batch)
        later = [s for other in self._in_flight if other.step > batch.step for s in _live(other)]
        suspects = [sequence for sequence in live if sequence.num_failures] or live
        idle: list[Sequence] = []
        if suspects:
            self.suspect_limit = max(1, len(suspects) // 2)
            idle = [s for s in self._roster.prefilling if s.num_failures]
        for sequence in suspects:
            sequence.num_failures += 1
        for sequence in dict.fromkeys(live + later + idle):
            self._release(sequence)
            self._roster.move(sequence, State.WAITING)
            self.counters.num_rollbacks += 1
        self._in_flight.remove(batch)
        if len(suspects) == 1 and suspects[0].num_failures > self.max_failures:
            return self.fail_sequences([suspects[0].sequence_id])
        return []

    def fail_sequences(
        self, sequence_ids: abc.Iterable[int], reason: FinishReason = FinishReason.FAILED
    ) -> list[Output]:
        """End just these samples, before or after the `update` of their step; others go on.

        Nothing they computed is findable afterwards. Ids that are already over are passed by.
        """
        now = self._clock()
        outputs = []
        for sequence_id in sequence_ids:
            sequence = self._roster.sequences.get(sequence_id)
            if sequence is not None:
                self._finish(sequence, reason, now, num_valid_tokens=0)
                outputs.append(Output(sequence, None, reason))
        return outputs

    # --- the three parts of a batch -------------------------------------------------------------

    def _schedule_decodes(self, entries: list[Entry], num_batches: int) -> list[Sequence]:
        """One token for decoding sequences, best first; returns whom that preempted.

        For all of them, or for so many that each of ``num_batches`` has as many. Victims are
        worse than the sequence at hand, so they come off the end of the list being walked or out of
        the prefills, which are scheduled after it.
        """
        preempted: list[Sequence] = []
        decoding = self._roster.decoding
        share = -(-len(decoding) // num_batches)
        for sequence in decoding:
            start = sequence.num_computed
            if sequence.num_scheduled > start:
                continue  # its token is not known yet
            if len(entries) >= share:
                break
            if start >= sequence.num_slots and not self._grow(sequence, preempted):
                break
            sequence.num_scheduled = start + 1
            entries.append(Entry(sequence, start, 1, 1, sequence.epoch))
        return preempted

    def _schedule_prefills(self, entries: list[Entry], budget: int) -> int:
        """Further prompt chunks of running sequences; returns the budget left."""
        for sequence in self._roster.prefilling:
            if budget == 0:
                break
            if sequence.num_scheduled < len(sequence.tokens):
                budget -= self._schedule_chunk(sequence, entries, budget)
        return budget

    def _admit(self, entries: list[Entry], budget: int) -> int:
        """Start waiting sequences while budget, places and blocks last; returns the budget left."""
        roster = self._roster
        while budget and roster.waiting and roster.num_running < self.max_num_seqs:
            sequence = roster.waiting[0]
            if not self._may_run(sequence) or not self._claim(sequence):
                break
            budget -= self._schedule_chunk(sequence, entries, budget)
        return budget

    def _schedule_chunk(self, sequence: Sequence, entries: list[Entry], budget: int) -> int:
        """As much of a prompt as the budget allows; returns the tokens scheduled."""
        start = sequence.num_scheduled
        num_tokens = min(budget, len(sequence.tokens) - start)
        stop = sequence.num_scheduled = start + num_tokens
        self.allocator.commit(sequence.sequence_id, sequence.tokens, stop)
        num_samples = sequence.samples_due if stop == len(sequence.tokens) else 0
        entries.append(Entry(sequence, start, num_tokens, num_samples, sequence.epoch))
        return num_tokens

    # --- blocks ---------------------------------------------------------------------------------

    def _grow(self, sequence: Sequence, preempted: list[Sequence]) -> bool:
        """Make the next position writable, preempting the worst while blocks are short.

        False when the sequence was the worst itself.
        """
        sequence_id, num_computed = sequence.sequence_id, sequence.num_computed
        self.allocator.commit(sequence_id, sequence.tokens, num_computed)
        while not self.allocator.append(sequence_id, num_computed + 1):
            victim = self._roster.worst_running()
            self._release(victim)
            self._roster.move(victim, State.WAITING)
            victim.num_preemptions += 1
            self.counters.num_preemptions += 1
            preempted.append(victim)
            if victim is sequence:
                return False
        sequence.num_slots = self._num_blocks(num_computed + 1) * self._block_size
        return True

    def _claim(self, sequence: Sequence) -> bool:
        """Move the best waiting sequence to prefilling with blocks for all its tokens, or don't.

        A failed try is repeated only once the free blocks have changed or nothing runs.
        """
        allocator, tokens = self.allocator, sequence.tokens
        attempt = (sequence.sequence_id, allocator.num_free_blocks)
        if self.num_running and (attempt == self._blocked or not self._leaves_reserve(sequence)):
            self._blocked = attempt
            return False
        namespace = sequence.request.namespace
        num_cached = allocator.allocate(sequence.sequence_id, tokens, len(tokens), namespace)
        if num_cached is None:
            self._blocked = attempt
            return False
        self._blocked = None
        self._roster.move(sequence, State.PREFILLING)
        sequence.num_computed = sequence.num_scheduled = sequence.num_cached = num_cached
        sequence.num_slots = self._num_blocks(len(tokens)) * self._block_size
        if sequence.first_scheduled is None:
            sequence.first_scheduled = self._clock()
        self.counters.num_admissions += 1
        self.counters.prefix_query_tokens += len(tokens)
        self.counters.prefix_hit_tokens += num_cached
        return True

    def _leaves_reserve(self, sequence: Sequence) -> bool:
        """Whether admitting it leaves the watermark's blocks free; looks at hits only if tight."""
        spare = self.allocator.num_free_blocks - self._reserve
        need = self._num_blocks(len(sequence.tokens))
        if need <= spare:
            return True
        hits = self.allocator.match_prefix(sequence.tokens, sequence.request.namespace)
        return need - hits // self._block_size <= spare

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_size)

    # --- life of a sequence ---------------------------------------------------------------------

    def _complete_prompt(
        self, parent: Sequence, tokens: abc.Sequence[int], outputs: list[Output], now: float
    ) -> None:
        """A prompt is computed and drew ``tokens``: its sequence decodes, its samples fork off."""
        self._roster.move(parent, State.DECODING)
        parent.num_failures = 0
        if parent.first_token is None:
            parent.first_token = now
        for index in range(1, len(tokens)):
            self._fork(parent, index, tokens[index], outputs, now)
        parent.samples_due = 1

    def _fork(
        self, parent: Sequence, index: int, token: int, outputs: list[Output], now: float
    ) -> None:
        """Start sample ``index`` with its first token on the parent's blocks.

        Without a free place it waits instead and finds the prompt in the prefix cache later.
        """
        child = parent.sibling(self._new_id(), index)
        child.tokens.append(token)
        child.first_token = now
        self.counters.num_forks += 1
        has_place = self._roster.num_running < self.max_num_seqs
        if has_place:
            self.allocator.fork(parent.sequence_id, child.sequence_id)
            # The last block is shared now: whoever writes it next must ask for a copy.
            child.num_computed = child.num_slots = parent.num_slots = parent.num_computed
            child.num_scheduled = child.num_computed
        self._roster.add(child, State.DECODING if has_place else State.WAITING)
        reason = child.stop_reason(token)
        outputs.append(Output(child, token, reason))
        if reason is not None:
            self._finish(child, reason, now)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        num_valid_tokens: int | None = None,
    ) -> None:
        self._release(sequence, num_valid_tokens)
        self._roster.remove(sequence)
        sequence.finish_reason = reason
        sequence.finished = now
        self.counters.num_finished[reason] += 1

    def _release(self, sequence: Sequence, num_valid_tokens: int | None = None) -> None:
        """Give up a sequence's blocks: the only place that does.

        Blocks stay findable as far as updates have confirmed them, or ``num_valid_tokens``. They
        may be read and written yet by batches that are out, before any batch to come.
        """
        if sequence.state is not State.WAITING:
            num_valid = sequence.num_computed if num_valid_tokens is None else num_valid_tokens
            self.allocator.commit(sequence.sequence_id, sequence.tokens, num_valid)
            self.allocator.free(sequence.sequence_id, num_valid)
            sequence.num_computed = sequence.num_slots = 0
            sequence.num_scheduled = 0
        sequence.epoch += 1

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # --- checks ---------------------------------------------------------------------------------

    def _may_run(self, sequence: Sequence) -> bool:
        """Whether suspicion lets a sequence start: few suspects at a time, see `fail`."""
        if not sequence.num_failures:
            return True
        suspects = sum(1 for other in self._roster.prefilling if other.num_failures)
        return suspects < self.suspect_limit

    def _is_out(self, batch: Batch) -> bool:
        """Whether this batch is in flight; an empty one never is, any other is stale."""
        if any(batch is out for out in self._in_flight):
            return True
        self.counters.num_stale_batches += bool(batch.entries)
        return False

    def _check_acceptable(self, request: Request) -> None:
        try:
            check_servable(
                request,
                max_model_len=self.max_model_len,
                num_usable_blocks=self._num_usable_blocks,
                block_size=self._block_size,
            )
            self.queue_bound.check(request, self.num_waiting, self.num_waiting_tokens)
        except Unservable:
            self.counters.num_unservable += 1
            raise
        except QueueFull:
            self.counters.num_queue_full += 1
            raise

    def _check_sampled(
        self, entries: list[Entry], sampled: abc.Sequence[abc.Sequence[int]]
    ) -> None:
        expected = [entry.num_samples for entry in entries]
        got = [len(tokens) for tokens in sampled]
        if expected == got:
            return
        check(len(expected) == len(got), "sampled", f"{len(expected)} entries", len(got))
        index = next(i for i in range(len(got)) if expected[i] != got[i])
        check(False, f"sampled[{index}]", f"{expected[index]} token ids", got[index])

    def check_invariants(self) -> None:
        """Assert invariants 1 to 8; O(live sequences)."""
        check_scheduler(self)


def _live(batch: Batch) -> list[Sequence]:
    """The sequences of a batch that neither ended nor gave way since."""
    return [entry.sequence for entry in batch.entries if entry.sequence.epoch == entry.epoch]
