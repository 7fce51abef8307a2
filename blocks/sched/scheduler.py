"""The token-budget loop: who runs next, and who gives way when cache blocks run short."""

import time
from collections import abc
from collections.abc import Callable

from blocks._checks import check, check_count, is_number
from blocks.sched.admission import QueueBound
from blocks.sched.allocator import Allocator
from blocks.sched.batch import Batch, Output
from blocks.sched.batch_builder import BatchBuilder
from blocks.sched.counters import Counters
from blocks.sched.holdings import Holdings
from blocks.sched.in_flight import InFlight, live
from blocks.sched.intake import Intake
from blocks.sched.lifecycle import Lifecycle
from blocks.sched.policy import Policy, choose_policy
from blocks.sched.request import FinishReason, Request, Sequence, State
from blocks.sched.roster import Roster
from blocks.sched.suspicion import Suspicion


class Scheduler:
    """Decides what each step computes. One step is `schedule`, run, `update` (or `fail`).

    What goes into a batch, and who gives way to it: `BatchBuilder`. The samples of a request are
    scheduled, preempted and finished one by one.

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

    1. Those of its parts: `Roster` (every live sequence is in the one queue of its state, by key),
       `InFlight` (the batches that are out), `Holdings` (what a sequence has of the cache in each
       state), `Lifecycle` (nobody is lost) and `Suspicion` (few suspects run at a time).
    2. At most ``max_num_seqs`` sequences run.
    3. A live sequence fits into the model's context and into an empty pool.

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
        check_count("max_num_seqs", max_num_seqs)
        check_count("token_budget", token_budget)
        check(
            token_budget >= max_num_seqs,
            "token_budget",
            f"at least max_num_seqs ({max_num_seqs}), so that every running sequence can go on",
            token_budget,
        )
        check_count("max_model_len", max_model_len, "prompt and output", least=2)
        share = is_number(watermark) and 0 <= watermark < 1
        check(share, "watermark", "a share in [0, 1)", repr(watermark))
        check_count("max_failures", max_failures)
        check_count("max_in_flight", max_in_flight)
        self.allocator = allocator
        self.token_budget = token_budget
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len
        self.max_in_flight = max_in_flight
        self.counters = counters = Counters()
        self._clock = clock
        self._roster = roster = Roster()
        self._in_flight = InFlight(max_in_flight)
        self._holdings = holdings = Holdings(allocator, watermark)
        self._suspicion = suspicion = Suspicion(
            roster, max_failures=max_failures, max_num_seqs=max_num_seqs
        )
        self._lifecycle = lifecycle = Lifecycle(
            roster, holdings, suspicion, counters, clock=clock, max_num_seqs=max_num_seqs
        )
        self._intake = Intake(
            roster,
            holdings,
            counters,
            policy=choose_policy(policy),
            clock=clock,
            bound=QueueBound(max_waiting, max_waiting_tokens),
            max_model_len=max_model_len,
        )
        self._builder = BatchBuilder(
            roster,
            holdings,
            suspicion,
            lifecycle,
            token_budget=token_budget,
            max_num_seqs=max_num_seqs,
        )

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
        rank, arrival = self._intake.rank(request)
        return self._lifecycle.start(request, rank, arrival)

    def cancel(self, request_id: str) -> bool:
        """End a request now, whatever it is doing; False when it is finished or unknown."""
        sequences = self.sequences(request_id)
        for sequence in sequences:
            self._lifecycle.finish(sequence, FinishReason.CANCELLED, self._clock())
        return bool(sequences)

    def stop(self, sequence_id: int, reason: FinishReason = FinishReason.STOP_STRING) -> bool:
        """End one sample, for a reason that the caller found; False when it is already over.

        A request whose prompt is not complete yet ends whole with its first sample.
        """
        sequence = self._roster.sequences.get(sequence_id)
        if sequence is None:
            return False
        self._lifecycle.finish(sequence, reason, self._clock())
        return True

    # --- a step ---------------------------------------------------------------------------------

    def schedule(self, num_batches: int | None = None) -> Batch:
        """Decide the next step; its blocks are claimed when this returns.

        Sequences that decode are divided evenly over ``num_batches``, ``max_in_flight`` by default.

        Raises RuntimeError while ``max_in_flight`` batches are out: the first of them must be given
        to `update` or `fail` first. An empty batch (nothing to do, or nothing can be done before
        another batch is through) needs neither.
        """
        self._in_flight.check_room()
        counters = self.counters
        batch = self._builder.build(counters.num_steps + 1, num_batches or self.max_in_flight)
        counters.num_steps += 1
        counters.num_scheduled_tokens += batch.num_tokens
        if batch.entries:
            self._in_flight.add(batch)
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
        self._in_flight.check_first(batch)
        batch.check_sampled(sampled)
        self._in_flight.remove(batch)
        now = self._clock()
        outputs: list[Output] = []
        for (sequence, start, num_tokens, num_samples, epoch), tokens in zip(
            batch.entries, sampled, strict=True
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
                self._lifecycle.complete_prompt(sequence, tokens, outputs, now)
            if reason is not None:
                self._lifecycle.finish(sequence, reason, now)
        self.counters.num_generated_tokens += len(outputs)
        return outputs

    def fail(self, batch: Batch) -> list[Output]:
        """The step raised or was lost: all its sequences go back to waiting and are recomputed.

        So do those of batches scheduled after it that are out: they may read what it was to write.
        Those batches stay out; their `update` or `fail` finds nothing to do.

        A request that breaks every step it is in is found and ended, see `Suspicion`; returns such
        ends. The step must not be running any more.
        """
        if not self._is_out(batch):
            return []
        self.counters.num_failed_steps += 1
        failed = live(batch)
        culprit = self._suspicion.accuse(failed)
        back = failed + self._in_flight.live_after(batch)
        if failed:
            back += self._suspicion.running()  # fewer may run from here on
        for sequence in dict.fromkeys(back):
            self._lifecycle.roll_back(sequence)
        self._in_flight.remove(batch)
        return [] if culprit is None else self.fail_sequences([culprit.sequence_id])

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
                self._lifecycle.finish(sequence, reason, now, num_valid_tokens=0)
                outputs.append(Output(sequence, None, reason))
        return outputs

    # --- checks ---------------------------------------------------------------------------------

    def _is_out(self, batch: Batch) -> bool:
        """Whether this batch is in flight; an empty one never is, any other is stale."""
        if batch in self._in_flight:
            return True
        self.counters.num_stale_batches += bool(batch.entries)
        return False

    def check_invariants(self) -> None:
        """Assert invariants 1 to 3; O(live sequences)."""
        roster, holdings = self._roster, self._holdings
        sequences = roster.sequences.values()
        roster.check_invariants()
        holdings.check_invariants(sequences)
        self._in_flight.check_invariants(sequences, self.token_budget)
        self._lifecycle.check_invariants()
        self._suspicion.check_invariants()
        running, most = roster.num_running, self.max_num_seqs
        assert running <= most, f"2: {running} of at most {most} run"
        longest = max(sequences, key=lambda sequence: sequence.max_len, default=None)
        if longest is not None:
            assert longest.max_len <= self.max_model_len, f"3: {longest}, {longest.max_len}"
            need = holdings.num_blocks(longest.max_len - 1)
            assert need <= holdings.num_usable_blocks, f"3: {longest} needs {need} blocks"
