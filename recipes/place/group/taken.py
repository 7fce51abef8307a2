"""``Taken``: a stream of a group, and what of it is still to come."""

from collections.abc import Callable

from recipes.place.group.faults import WorkLost
from recipes.serve.outputs import Delta
from recipes.serve.stream import Stream

OnLost = Callable[[Stream, WorkLost], object]
"""Told that a stream, of which nobody has read anything, can be gone on with elsewhere."""


class Taken:
    """The jobs of one ``submit``.

    accepted: the group has queued them. touched: a delta was delivered.
    """

    def __init__(self, stream: Stream, model: str, on_lost: OnLost | None) -> None:
        self.stream, self.model = stream, model
        self.accepted = self.touched = False
        self._on_lost = on_lost
        self._open = {job.request_id: set(range(job.params.n)) for job in stream.jobs}

    def num_open(self, request_id: str) -> int:
        """Samples of a job that have not ended."""
        return len(self._open[request_id])

    @property
    def may_restart(self) -> bool:
        """Whether it can be made anew: nobody has read of it, and somebody sees to it."""
        return self._on_lost is not None and not self.stream.was_read

    def put(self, delta: Delta) -> bool:
        """Deliver a delta; whether it was the last of its sample."""
        left = self._open[delta.request_id]
        if delta.index not in left:
            return False
        self.touched = True
        if delta.finish_reason is not None:
            left.discard(delta.index)
        self.stream.put(delta)
        return delta.finish_reason is not None

    def end(self, lost: WorkLost) -> None:
        """What computed it is gone: what nobody has read of may be made anew elsewhere."""
        if self.stream.cancelled is not None:
            return
        if self._on_lost is not None and self.may_restart:
            if self.touched:
                self.stream.restart()
            self._on_lost(self.stream, lost)
        elif self.touched:
            for request_id, left in self._open.items():
                for index in sorted(left):
                    delta = Delta(request_id, index, [], "", None, "error", lost=True)
                    delta.error = str(lost)
                    self.stream.put(delta)
        else:
            self.stream.fail(lost)
