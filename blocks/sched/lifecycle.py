"""The ways of a sequence from state to state: queue, blocks and counts change together."""

from collections import abc
from collections.abc import Callable

from blocks.sched.batch import Output
from blocks.sched.counters import Counters
from blocks.sched.holdings import Holdings
from blocks.sched.request import FinishReason, Request, Sequence, State
from blocks.sched.roster import Roster
from blocks.sched.suspicion import Suspicion


class Lifecycle:
    """Starts, admits, sends back, forks and ends sequences (the arrows of `State`).

    **Invariants**

    1. Every sequence ever started is live or finished.
    2. A live sequence is shorter than its ``max_len``; it has forked once it has a token.
    """

    __slots__ = (
        "_clock",
        "_counters",
        "_holdings",
        "_max_num_seqs",
        "_next_id",
        "_roster",
        "_suspicion",
    )

    def __init__(
        self,
        roster: Roster,
        holdings: Holdings,
        suspicion: Suspicion,
        counters: Counters,
        clock: Callable[[], float],
        max_num_seqs: int,
    ) -> None:
        self._roster = roster
        self._holdings = holdings
        self._suspicion = suspicion
        self._counters = counters
        self._clock = clock
        self._max_num_seqs = max_num_seqs
        self._next_id = 0

    def start(self, request: Request, rank: object, arrival: float) -> Sequence:
        """The first sample of a request waits; the others start when the prompt is done."""
        order = (rank, self._counters.num_requests)
        sequence = Sequence(self._new_id(), request, order, arrival)
        self._roster.add(sequence, State.WAITING)
        self._counters.num_requests += 1
        return sequence

    def admit(self, sequence: Sequence) -> bool:
        """From waiting to prefilling, with blocks for all its tokens; False when they are short."""
        if not self._holdings.claim(sequence, others_run=self._roster.num_running > 0):
            return False
        self._roster.move(sequence, State.PREFILLING)
        if sequence.first_scheduled is None:
            sequence.first_scheduled = self._clock()
        self._counters.num_admissions += 1
        self._counters.prefix_query_tokens += len(sequence.tokens)
        self._counters.prefix_hit_tokens += sequence.num_cached
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Back to waiting: another needs its blocks."""
        self._send_back(sequence)
        sequence.num_preemptions += 1
        self._counters.num_preemptions += 1

    def roll_back(self, sequence: Sequence) -> None:
        """Back to waiting: what it computed cannot be trusted."""
        self._send_back(sequence)
        self._counters.num_rollbacks += 1

    def _send_back(self, sequence: Sequence) -> None:
        self._holdings.release(sequence)
        self._roster.move(sequence, State.WAITING)

    def complete_prompt(
        self, parent: Sequence, tokens: abc.Sequence[int], outputs: list[Output], now: float
    ) -> None:
        """A prompt is computed and drew ``tokens``: its sequence decodes, its samples fork off."""
        self._roster.move(parent, State.DECODING)
        self._suspicion.acquit(parent)
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
        self._counters.num_forks += 1
        has_place = self._roster.num_running < self._max_num_seqs
        if has_place:
            self._holdings.share(parent, child)
        self._roster.add(child, State.DECODING if has_place else State.WAITING)
        reason = child.stop_reason(token)
        outputs.append(Output(child, token, reason))
        if reason is not None:
            self.finish(child, reason, now)

    def finish(
        self,
        sequence: Sequence,
        reason: FinishReason,
        now: float,
        num_valid_tokens: int | None = None,
    ) -> None:
        """From any state; what it computed stays findable, or ``num_valid_tokens`` of it."""
        self._holdings.release(sequence, num_valid_tokens)
        self._roster.remove(sequence)
        sequence.finish_reason = reason
        sequence.finished = now
        self._counters.num_finished[reason] += 1

    def _new_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def check_invariants(self) -> None:
        """Assert invariants 1 and 2; O(live sequences)."""
        counters, sequences = self._counters, self._roster.sequences
        started = counters.num_requests + counters.num_forks
        ended, live = sum(counters.num_finished.values()), len(sequences)
        assert started == ended + live, f"1: {started} started, {ended} ended, {live} live"
        for sequence in sequences.values():
            longest = sequence.max_len
            assert len(sequence.tokens) < longest, f"2: {sequence}, max_len {longest}"
            has_forked = sequence.samples_due == 1 or not sequence.num_output
            assert has_forked, f"2: {sequence} did not fork"
