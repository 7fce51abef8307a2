"""The token-budget loop: who runs next, and who gives way when cache blocks run short."""

import bisect
import dataclasses
import itertools
import operator
import time
from collections import Counter, abc
from collections.abc import Callable

from blocks._checks import check, fail
from blocks.sched.allocator import Allocator
from blocks.sched.batch import Batch, Entry, Output
from blocks.sched.policy import Policy, choose_policy
from blocks.sched.request import FinishReason, Request, Sequence, State

_KEY = operator.attrgetter("key")


class Unservable(ValueError):
    """A request that could never run here, however long it waited."""


class QueueFull(RuntimeError):
    """The waiting queue is at its bound; try again later."""


@dataclasses.dataclass(slots=True)
class Counters:
    """Totals since construction, for metrics. Gauges are properties of the `Scheduler`."""

    num_steps: int = 0
    num_failed_steps: int = 0
    num_scheduled_tokens: int = 0
    num_generated_tokens: int = 0
    num_requests: int = 0
    num_unservable: int = 0
    num_queue_full: int = 0
    num_admissions: int = 0
    num_preemptions: int = 0
    num_forks: int = 0
    num_rollbacks: int = 0
    num_stale_batches: int = 0
    num_stale_entries: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    num_finished: Counter[FinishReason] = dataclasses.field(default_factory=Counter)


class Scheduler:
    """Decides what each step computes. One step is `schedule`, run, `update` (or `fail`).

    A step gives every decoding sequence one token, then spends the rest of the token budget on
    prompts: first those already running, then waiting ones, best key first. A waiting sequence that
    does not fit holds back those behind it. A decode that needs a block while none is free takes
    it from the running sequence with the largest key, which goes back to waiting and is recomputed
    later; a step that preempted admits nobody. The samples of a request are scheduled, preempted
    and finished one by one.

    Why every accepted request finishes: keys are fixed and unique, so of all running sequences one
    is best. It is never preempted, for alone it fits (checked by `add`) and everyone else gives way
    first; and it gains a position each step, for the budget holds one token per running sequence.
    So it finishes; when nothing runs, the best waiting sequence is admitted.

    **Invariants**

    1. A live sequence is in exactly one queue, that of its state; queues are sorted by key.
    2. At most ``max_num_seqs`` sequences run; a batch has at most ``token_budget`` tokens and at
       most one entry per sequence.
    3. A waiting sequence holds nothing: no blocks, ``num_computed == num_slots == 0``.
    4. A prefilling sequence has slots for all its tokens and at least one left to compute.
    5. A decoding sequence has all but its last token computed.
    6. A live sequence is shorter than its ``max_len`` and would fit into an empty pool.
    7. Requests and sequences know each other; a request is live while one of its samples is.
    8. Every request ever accepted is live or finished; every admission ended or is running.
    9. At most ``suspect_limit`` sequences suspected of a failed step run at a time.

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
        for name, limit in (
            ("max_waiting", max_waiting),
            ("max_waiting_tokens", max_waiting_tokens),
        ):
            check(limit is None or limit >= 1, name, "at least 1, or None for no bound", limit)
        self.allocator = allocator
        self.token_budget = token_budget
        self.max_num_seqs = max_num_seqs
        self.max_model_len = max_model_len
        self.max_waiting = max_waiting
        self.max_waiting_tokens = max_waiting_tokens
        self.max_failures = max_failures
        self.suspect_limit = max_num_seqs
        self.counters = Counters()
        self._policy = choose_policy(policy)
        self._clock = clock
        self._block_size = allocator.block_size
        self._num_usable_blocks = allocator.num_usable_blocks
        self._reserve = int(watermark * self._num_usable_blocks)
        self._waiting: list[Sequence] = []
        self._prefilling: list[Sequence] = []
        self._decoding: list[Sequence] = []
        self._queues = {
            State.WAITING: self._waiting,
            State.PREFILLING: self._prefilling,
            State.DECODING: self._decoding,
        }
        self._requests: dict[str, list[Sequence]] = {}
        self._sequences: dict[int, Sequence] = {}
        self._num_waiting_tokens = 0
        self._next_id = 0
        self._last_arrival = float("-inf")
        self._in_flight: Batch | None = None
        self._blocked: tuple[int, int] | None = None

    # --- gauges ---------------------------------------------------------------------------------

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._decoding) + len(self._prefilling)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for admission, preempted ones included."""
        return len(self._waiting)

    @property
    def num_waiting_tokens(self) -> int:
        """Tokens of the waiting sequences."""
        return self._num_waiting_tokens

    @property
    def num_requests(self) -> int:
        """Requests that are not finished."""
        return len(self._requests)

    def has_work(self) -> bool:
        """Whether any request is unfinished."""
        return bool(self._requests)

    def sequences(self, request_id: str) -> list[Sequence]:
        """The unfinished samples of a request; empty when it is finished or unknown."""
        return list(self._requests.get(request_id, ()))

    # --- requests come and go -------------------------------------------------------------------

    def add(self, request: Request) -> Sequence:
        """Queue a request; returns its first sample (the others start when the prompt is done).

        Raises:
            Unservable: it could never fit into the model's context or the cache.
            QueueFull: too much is waiting; nothing has changed.
            ValueError: a request of this id is live.
        """
        check(
            request.request_id not in self._requests,
            "request_id",
            "one that is not in use",
            repr(request.request_id),
        )
        self._check_servable(request)
        self._check_queue(request)
        now = self._clock()
        self._last_arrival = max(self._last_arrival, now)
        order = (self._policy(request, self._last_arrival), self.counters.num_requests)
        arrival = now if request.arrival is None else request.arrival
        sequence = Sequence(self._new_id(), request, order, arrival)
        self.counters.num_requests += 1
        self._requests[request.request_id] = [sequence]
        self._sequences[sequence.sequence_id] = sequence
        self._enqueue(sequence, State.WAITING)
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
        sequence = self._sequences.get(sequence_id)
        if sequence is None:
            return False
        self._finish(sequence, reason, self._clock())
        return True

    # --- a step ---------------------------------------------------------------------------------

    def schedule(self) -> Batch:
        """Decide the next step; its blocks are claimed when this returns.

        Raises RuntimeError while a batch is out: it must be given to `update` or `fail` first.
        An empty batch (nothing to do, or nothing fits just now) needs neither.
        """
        if self._in_flight is not None:
            raise RuntimeError(
                f"schedule: expected no batch in flight, got step {self._in_flight.step}; "
                "pass it to update() or fail() first"
            )
        entries: list[Entry] = []
        preempted = self._schedule_decodes(entries)
        budget = self._schedule_prefills(entries, self.token_budget - len(entries))
        if not preempted:
            budget = self._admit(entries, budget)
        counters = self.counters
        counters.num_steps += 1
        counters.num_scheduled_tokens += self.token_budget - budget
        batch = Batch(counters.num_steps, entries, self.token_budget - budget, tuple(preempted))
        if entries:
            self._in_flight = batch
        return batch

    def update(self, batch: Batch, sampled: abc.Sequence[abc.Sequence[int]]) -> list[Output]:
        """Take in what a step drew: ``sampled[i]`` holds ``entries[i].num_samples`` token ids.

        Returns the tokens gained, in batch order, samples of one request in index order. Entries
        of sequences that ended meanwhile are dropped, and so is a batch that is not the one in
        flight (late or twice).
        """
        if not self._take(batch):
            return []
        entries = batch.entries
        self._check_sampled(entries, sampled)
        self._in_flight = None
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

        To find a request that breaks every step it is in, the sequences of a failed step become
        suspects, and half as many of them run at a time after each further failure, until each has
        gained a token; a suspect that fails as the only one, more than ``max_failures`` times in
        all, is ended. Returns such ends. The step must not be running any more.
        """
        if not self._take(batch):
            return []
        self.counters.num_failed_steps += 1
        live = [entry.sequence for entry in batch.entries if entry.sequence.epoch == entry.epoch]
        suspects = [sequence for sequence in live if sequence.num_failures] or live
        self.suspect_limit = max(1, len(suspects) // 2)
        for sequence in suspects:
            sequence.num_failures += 1
        idle = [s for s in self._prefilling if s.num_failures and s not in live]
        for sequence in live + idle:
            self._release(sequence)
            self._enqueue(sequence, State.WAITING)
            self.counters.num_rollbacks += 1
        self._in_flight = None
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
            sequence = self._sequences.get(sequence_id)
            if sequence is not None:
                self._finish(sequence, reason, now, num_valid_tokens=0)
                outputs.append(Output(sequence, None, reason))
        return outputs

    # --- the three parts of a batch -------------------------------------------------------------

    def _schedule_decodes(self, entries: list[Entry]) -> list[Sequence]:
        """One token for every decoding sequence, best first; returns whom that preempted.

        Victims are worse than the sequence at hand, so they come off the end of the list being
        walked or out of the prefills, which are scheduled after it.
        """
        preempted: list[Sequence] = []
        for sequence in self._decoding:
            start = sequence.num_computed
            if start >= sequence.num_slots and not self._grow(sequence, preempted):
                break
            entries.append(Entry(sequence, start, 1, 1, sequence.epoch))
        return preempted

    def _schedule_prefills(self, entries: list[Entry], budget: int) -> int:
        """Further prompt chunks of running sequences; returns the budget left."""
        for sequence in self._prefilling:
            if budget == 0:
                break
            budget -= self._schedule_chunk(sequence, entries, budget)
        return budget

    def _admit(self, entries: list[Entry], budget: int) -> int:
        """Start waiting sequences while budget, places and blocks last; returns the budget left."""
        while budget and self._waiting and self.num_running < self.max_num_seqs:
            sequence = self._waiting[0]
            if not self._may_run(sequence) or not self._claim(sequence):
                break
            budget -= self._schedule_chunk(sequence, entries, budget)
        return budget

    def _schedule_chunk(self, sequence: Sequence, entries: list[Entry], budget: int) -> int:
        """As much of a prompt as the budget allows; returns the tokens scheduled."""
        start = sequence.num_computed
        num_tokens = min(budget, len(sequence.tokens) - start)
        stop = start + num_tokens
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
            victim = self._worst_running()
            self._release(victim)
            self._enqueue(victim, State.WAITING)
            victim.num_preemptions += 1
            self.counters.num_preemptions += 1
            preempted.append(victim)
            if victim is sequence:
                return False
        sequence.num_slots = self._num_blocks(num_computed + 1) * self._block_size
        return True

    def _worst_running(self) -> Sequence:
        tails = (queue[-1] for queue in (self._decoding, self._prefilling) if queue)
        return max(tails, key=_KEY)

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
        self._dequeue(sequence)
        self._enqueue(sequence, State.PREFILLING)
        sequence.num_computed = sequence.num_cached = num_cached
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
        self._dequeue(parent)
        self._enqueue(parent, State.DECODING)
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
        reason = child.stop_reason(token)
        outputs.append(Output(child, token, reason))
        self._requests[child.request.request_id].append(child)
        self._sequences[child.sequence_id] = child
        self.counters.num_forks += 1
        if reason is not None:
            self._retire(child, reason, now)
        elif self.num_running < self.max_num_seqs:
            self.allocator.fork(parent.sequence_id, child.sequence_id)
            # The last block is shared now: whoever writes it next must ask for a copy.
            child.num_computed = child.num_slots = parent.num_slots = parent.num_computed
            self._enqueue(child, State.DECODING)
        else:
            self._enqueue(child, State.WAITING)

    def _finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        num_valid_tokens: int | None = None,
    ) -> None:
        self._release(sequence, num_valid_tokens)
        self._retire(sequence, reason, now)

    def _release(self, sequence: Sequence, num_valid_tokens: int | None = None) -> None:
        """Take a sequence out of its queue and give up its blocks: the only place that does.

        Blocks stay findable as far as updates have confirmed them, or ``num_valid_tokens``. While
        a step is out nothing new becomes findable: the prefix may be one that this step fills.
        """
        self._dequeue(sequence)
        if sequence.state is not State.WAITING:
            num_valid = sequence.num_computed if num_valid_tokens is None else num_valid_tokens
            if self._in_flight is None:
                self.allocator.commit(sequence.sequence_id, sequence.tokens, num_valid)
            self.allocator.free(sequence.sequence_id, num_valid)
            sequence.num_computed = sequence.num_slots = 0
        sequence.epoch += 1

    def _retire(self, sequence: Sequence, reason: FinishReason, now: float) -> None:
        """Forget a sequence that is in no queue; a request goes with its last sample."""
        sequence.state = State.FINISHED
        sequence.finish_reason = reason
        sequence.finished = now
        del self._sequences[sequence.sequence_id]
        siblings = self._requests[sequence.request.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._requests[sequence.request.request_id]
        self.counters.num_finished[reason] += 1

    def _enqueue(self, sequence: Sequence, state: State) -> None:
        sequence.state = state
        bisect.insort(self._queues[state], sequence, key=_KEY)
        if state is State.WAITING:
            self._num_waiting_tokens += len(sequence.tokens)

    def _dequeue(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.state]
        del queue[bisect.bisect_left(queue, sequence.key, key=_KEY)]
        if sequence.state is State.WAITING:
            self._num_waiting_tokens -= len(sequence.tokens)

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    # --- checks ---------------------------------------------------------------------------------

    def _may_run(self, sequence: Sequence) -> bool:
        """Whether suspicion lets a sequence start: few suspects at a time, see `fail`."""
        if not sequence.num_failures:
            return True
        suspects = sum(1 for other in self._prefilling if other.num_failures)
        return suspects < self.suspect_limit

    def _take(self, batch: Batch) -> bool:
        """Whether this is the batch in flight; an empty one never is, any other is stale."""
        if batch is self._in_flight:
            return True
        self.counters.num_stale_batches += bool(batch.entries)
        return False

    def _check_servable(self, request: Request) -> None:
        num_prompt, max_tokens = len(request.prompt_tokens), request.max_tokens
        needs = f"{num_prompt} prompt + {max_tokens} new tokens"
        if num_prompt + max_tokens > self.max_model_len:
            self.counters.num_unservable += 1
            limit = f"at most {self.max_model_len} tokens (max_model_len)"
            hint = "shorten the prompt or lower max_tokens"
            raise Unservable(str(fail(f"request {request.request_id!r}", limit, needs, hint)))
        # The last token's keys and values are never needed. Samples can run one after another, so
        # one sample must fit, not all of them.
        need = self._num_blocks(num_prompt + max_tokens - 1)
        if need > self._num_usable_blocks:
            self.counters.num_unservable += 1
            limit = (
                f"at most {self._num_usable_blocks} cache blocks of {self._block_size} tokens each"
            )
            hint = "shorten the prompt, lower max_tokens or enlarge the cache"
            got = f"{needs} = {need} blocks"
            raise Unservable(str(fail(f"request {request.request_id!r}", limit, got, hint)))

    def _check_queue(self, request: Request) -> None:
        waiting, tokens = len(self._waiting), self._num_waiting_tokens
        full = self.max_waiting is not None and waiting >= self.max_waiting
        if self.max_waiting_tokens is not None and waiting:
            full |= tokens + len(request.prompt_tokens) > self.max_waiting_tokens
        if full:
            self.counters.num_queue_full += 1
            raise QueueFull(
                f"waiting queue: expected at most {self.max_waiting} sequences and "
                f"{self.max_waiting_tokens} tokens (None: no bound), got {waiting} sequences and "
                f"{tokens} tokens before request {request.request_id!r}; try again later"
            )

    def _check_sampled(
        self, entries: list[Entry], sampled: abc.Sequence[abc.Sequence[int]]
    ) -> None:
        expected = [entry.num_samples for entry in entries]
        got = [len(tokens) for tokens in sampled]
        check(expected == got, "sampled", f"{expected} tokens per entry", got)

    def check_invariants(self) -> None:
        """Assert invariants 1 to 9; O(live sequences)."""
        for state, queue in self._queues.items():
            keys = [sequence.key for sequence in queue]
            assert all(a < b for a, b in itertools.pairwise(keys)), (state, keys)  # 1
            for sequence in queue:
                assert sequence.state is state, (state, sequence)  # 1
                assert self._sequences.get(sequence.sequence_id) is sequence, sequence  # 1, 7
                self._check_sequence(sequence)
        assert sum(map(len, self._queues.values())) == len(self._sequences)  # 1
        assert self.num_running <= self.max_num_seqs, self.num_running  # 2
        self._check_in_flight()
        live = [sequence for group in self._requests.values() for sequence in group]
        assert all(self._requests.values()), self._requests  # 7
        assert {id(s) for s in live} == {id(s) for s in self._sequences.values()}  # 7
        assert len(live) == len(self._sequences), live  # 7
        counters = self.counters
        ended = sum(counters.num_finished.values())
        assert counters.num_requests + counters.num_forks == len(live) + ended  # 8
        assert self._num_waiting_tokens == sum(len(s.tokens) for s in self._waiting)
        suspects = [sequence for sequence in self._prefilling if sequence.num_failures]
        assert len(suspects) <= self.suspect_limit, suspects  # 9

    def _check_sequence(self, sequence: Sequence) -> None:
        computed, slots, total = sequence.num_computed, sequence.num_slots, len(sequence.tokens)
        if sequence.state is State.WAITING:
            assert computed == slots == 0, sequence  # 3
        elif sequence.state is State.PREFILLING:
            assert computed < total <= slots, sequence  # 4
        else:
            assert computed == total - 1, sequence  # 5
            assert not sequence.num_failures, sequence  # 9
        assert total < sequence.max_len <= self.max_model_len, sequence  # 6
        assert self._num_blocks(sequence.max_len - 1) <= self._num_usable_blocks, sequence  # 6
        assert sequence.samples_due == 1 or sequence.num_output == 0, sequence

    def _check_in_flight(self) -> None:
        batch = self._in_flight
        if batch is None:
            return
        assert sum(entry.num_tokens for entry in batch.entries) == batch.num_tokens  # 2
        assert 0 < batch.num_tokens <= self.token_budget, batch.num_tokens  # 2
        assert len({id(entry.sequence) for entry in batch.entries}) == len(batch.entries)  # 2
        for sequence, start, num_tokens, _, epoch in batch.entries:
            if sequence.epoch == epoch:
                assert start == sequence.num_computed, sequence
                assert start + num_tokens <= len(sequence.tokens), sequence
