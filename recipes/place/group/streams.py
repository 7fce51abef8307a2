"""``Streams``: the streams of a group, by the requests they carry."""

from collections.abc import Iterable, Sequence

from blocks._checks import check
from recipes.place.group.faults import GroupLost, WorkLost
from recipes.place.group.taken import Taken
from recipes.serve.job import Job
from recipes.serve.outputs import Delta


class Streams:
    """What was sent to a group and has not ended.

    num_sequences: samples that have not ended.

    Invariants:
        1. ``num_sequences`` is the sum over all requests here of samples that have not ended.
        2. A request that is not here gets no delta.
    """

    def __init__(self) -> None:
        self.num_sequences = 0
        self._taken: dict[str, Taken] = {}
        self._sent: dict[int, tuple[str, list[int]]] = {}  # by number, which grows

    def check_new(self, jobs: Sequence[Job]) -> None:
        """
        Raises:
            ValueError: a request of that id is here.
        """
        for job in jobs:
            check(job.request_id not in self._taken, "request_id", "a new one", job.request_id)

    def add(self, number: int, taken: Taken) -> None:
        """What is submitted with a number."""
        jobs = taken.stream.jobs
        for job in jobs:
            self._taken[job.request_id] = taken
            self.num_sequences += taken.num_open(job.request_id)
        self._sent[number] = (taken.model, [len(job.prompt_tokens) for job in jobs])

    def find(self, jobs: Sequence[Job]) -> Taken | None:
        """What carries these jobs; None where nothing does."""
        return self._taken.get(jobs[0].request_id) if jobs else None

    def forget(self, taken: Taken) -> None:
        """Deltas that are still on their way are dropped from here on."""
        for job in taken.stream.jobs:
            if self._taken.get(job.request_id) is taken:
                del self._taken[job.request_id]
                self.num_sequences -= taken.num_open(job.request_id)

    def deliver(self, deltas: Iterable[Delta]) -> None:
        for delta in deltas:
            taken = self._taken.get(delta.request_id)
            if taken is not None and delta.lost and taken.may_restart:
                self.forget(taken)  # of its other jobs nothing good will come either
                taken.end(WorkLost(delta.error or "it was lost"))
            elif taken is not None and taken.put(delta):
                self.num_sequences -= 1
                if not taken.num_open(delta.request_id):
                    del self._taken[delta.request_id]

    def lose(self, lost: GroupLost) -> None:
        """The group is gone; those whose ``submit`` still waits are left to it."""
        self._sent.clear()
        for taken in dict.fromkeys(self._taken.values()):
            if taken.accepted or taken.touched:
                self.forget(taken)
                taken.end(lost)

    # ---- what the group's state counts ----

    def seen(self, number: int) -> None:
        """Everything up to this number is counted there."""
        while self._sent and (first := next(iter(self._sent))) <= number:
            del self._sent[first]

    def refused(self, number: int) -> None:
        """What has this number never will be."""
        self._sent.pop(number, None)

    def unseen(self, model: str) -> tuple[int, ...]:
        """Prompt lengths of what was sent to a model and is not counted yet."""
        sent = self._sent.values()
        return tuple(length for name, lengths in sent if name == model for length in lengths)

    def check_invariants(self) -> None:
        num_open = sum(taken.num_open(request_id) for request_id, taken in self._taken.items())
        assert num_open == self.num_sequences, (num_open, self.num_sequences)
