"""Who is live and where they stand: the queues, and the maps from ids to sequences."""

import bisect
import itertools
import operator

from blocks.sched.request import Sequence, State

_KEY = operator.attrgetter("key")


class Roster:
    """The live sequences, each in the queue of its state, queues best key first.

    **Invariants**

    1. A live sequence is in exactly one queue, that of its state; queues are sorted by key.
    2. Requests and sequences know each other; a request is live while one of its samples is.
    3. ``num_waiting_tokens`` is the tokens of the waiting sequences.

    Every change is O(log n) plus a list shift.
    """

    __slots__ = (
        "_queues",
        "decoding",
        "num_waiting_tokens",
        "prefilling",
        "requests",
        "sequences",
        "waiting",
    )

    def __init__(self) -> None:
        self.waiting: list[Sequence] = []
        self.prefilling: list[Sequence] = []
        self.decoding: list[Sequence] = []
        self._queues = {
            State.WAITING: self.waiting,
            State.PREFILLING: self.prefilling,
            State.DECODING: self.decoding,
        }
        self.requests: dict[str, list[Sequence]] = {}
        self.sequences: dict[int, Sequence] = {}
        self.num_waiting_tokens = 0

    @property
    def num_running(self) -> int:
        return len(self.decoding) + len(self.prefilling)

    def add(self, sequence: Sequence, state: State) -> None:
        """A new sequence becomes live."""
        self._enqueue(sequence, state)
        self.requests.setdefault(sequence.request.request_id, []).append(sequence)
        self.sequences[sequence.sequence_id] = sequence

    def move(self, sequence: Sequence, state: State) -> None:
        """From one queue to another."""
        self._dequeue(sequence)
        self._enqueue(sequence, state)

    def remove(self, sequence: Sequence) -> None:
        """The sequence is over; its request too with the last sample."""
        self._dequeue(sequence)
        sequence.state = State.FINISHED
        del self.sequences[sequence.sequence_id]
        samples = self.requests[sequence.request.request_id]
        samples.remove(sequence)
        if not samples:
            del self.requests[sequence.request.request_id]

    def worst_running(self) -> Sequence:
        """The running sequence with the largest key."""
        tails = (queue[-1] for queue in (self.decoding, self.prefilling) if queue)
        return max(tails, key=_KEY)

    def _enqueue(self, sequence: Sequence, state: State) -> None:
        bisect.insort(self._queues[state], sequence, key=_KEY)
        sequence.state = state
        if state is State.WAITING:
            self.num_waiting_tokens += len(sequence.tokens)

    def _dequeue(self, sequence: Sequence) -> None:
        queue = self._queues[sequence.state]
        index = bisect.bisect_left(queue, sequence.key, key=_KEY)
        assert queue[index] is sequence, f"{sequence} is not in its queue"
        del queue[index]
        if sequence.state is State.WAITING:
            self.num_waiting_tokens -= len(sequence.tokens)

    def check_invariants(self) -> None:
        """Assert invariants 1 to 3. O(live sequences)."""
        for state, queue in self._queues.items():
            keys = [sequence.key for sequence in queue]
            in_order = all(a < b for a, b in itertools.pairwise(keys))
            assert in_order, f"1: {state} is out of order: {keys}"
            for sequence in queue:
                assert sequence.state is state, f"1: {sequence} is in the queue {state}"
                known = self.sequences.get(sequence.sequence_id)
                assert known is sequence, f"2: {sequence} is queued, {known} is known"
        queued = sum(len(queue) for queue in self._queues.values())
        assert queued == len(self.sequences), f"1: {queued} queued, {len(self.sequences)} live"
        listed = [sequence for samples in self.requests.values() for sequence in samples]
        assert all(self.requests.values()), f"2: a live request without samples: {listed}"
        assert {s.sequence_id for s in listed} == set(self.sequences), f"2: {listed} are listed"
        assert len(listed) == len(self.sequences), f"2: a sample is listed twice: {listed}"
        tokens = sum(len(sequence.tokens) for sequence in self.waiting)
        assert self.num_waiting_tokens == tokens, f"3: {self.num_waiting_tokens}, {tokens} wait"
