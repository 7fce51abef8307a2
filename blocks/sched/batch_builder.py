"""What the next step computes: decodes, prompt chunks, newcomers, and who gives way to them."""

from blocks.sched.batch import Batch, Entry
from blocks.sched.holdings import Holdings
from blocks.sched.lifecycle import Lifecycle
from blocks.sched.request import Sequence
from blocks.sched.roster import Roster
from blocks.sched.suspicion import Suspicion


class BatchBuilder:
    """Fills a batch from the queues, best key first, as far as tokens, places and blocks last.

    Every decoding sequence gets one token, then the rest of the token budget goes to prompts: first
    those already running, then waiting ones. A waiting sequence that does not fit holds back those
    behind it. A decode that needs a block while none is free takes it from the running sequence
    with the largest key; a batch that preempted admits nobody.

    Keeps nothing between two batches: what is decided stands in the sequences and their queues.
    """

    __slots__ = (
        "_holdings",
        "_lifecycle",
        "_max_num_seqs",
        "_roster",
        "_suspicion",
        "_token_budget",
    )

    def __init__(
        self,
        roster: Roster,
        holdings: Holdings,
        suspicion: Suspicion,
        lifecycle: Lifecycle,
        *,
        token_budget: int,
        max_num_seqs: int,
    ) -> None:
        self._roster = roster
        self._holdings = holdings
        self._suspicion = suspicion
        self._lifecycle = lifecycle
        self._token_budget = token_budget
        self._max_num_seqs = max_num_seqs

    def build(self, step: int, num_batches: int) -> Batch:
        """The batch of a step, one of ``num_batches`` that share the decoding sequences; its blocks
        are claimed when this returns."""
        entries: list[Entry] = []
        preempted = self._add_decodes(entries, num_batches)
        budget = self._add_chunks(entries, self._token_budget - len(entries))
        if not preempted:
            budget = self._admit(entries, budget)
        return Batch(step, entries, self._token_budget - budget, tuple(preempted))

    def _add_decodes(self, entries: list[Entry], num_batches: int) -> list[Sequence]:
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
            if start >= sequence.num_slots and not self._make_room(sequence, preempted):
                break
            sequence.num_scheduled = start + 1
            entries.append(Entry(sequence, start, 1, 1, sequence.epoch))
        return preempted

    def _make_room(self, sequence: Sequence, preempted: list[Sequence]) -> bool:
        """Make the next position writable, preempting the worst while blocks are short.

        False when the sequence was the worst itself.
        """
        self._holdings.fill(sequence, sequence.num_computed)
        while not self._holdings.extend(sequence):
            victim = self._roster.worst_running()
            self._lifecycle.preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _add_chunks(self, entries: list[Entry], budget: int) -> int:
        """Further prompt chunks of running sequences; returns the budget left."""
        for sequence in self._roster.prefilling:
            if budget == 0:
                break
            if sequence.num_scheduled < len(sequence.tokens):
                budget -= self._add_chunk(sequence, entries, budget)
        return budget

    def _admit(self, entries: list[Entry], budget: int) -> int:
        """Start waiting sequences while budget, places and blocks last; returns the budget left."""
        roster = self._roster
        while budget and roster.waiting and roster.num_running < self._max_num_seqs:
            sequence = roster.waiting[0]
            if not self._suspicion.may_run(sequence) or not self._lifecycle.admit(sequence):
                break
            budget -= self._add_chunk(sequence, entries, budget)
        return budget

    def _add_chunk(self, sequence: Sequence, entries: list[Entry], budget: int) -> int:
        """As much of a prompt as the budget allows; returns the tokens scheduled."""
        start = sequence.num_scheduled
        num_tokens = min(budget, len(sequence.tokens) - start)
        stop = sequence.num_scheduled = start + num_tokens
        self._holdings.fill(sequence, stop)
        num_samples = sequence.samples_due if stop == len(sequence.tokens) else 0
        entries.append(Entry(sequence, start, num_tokens, num_samples, sequence.epoch))
        return num_tokens
