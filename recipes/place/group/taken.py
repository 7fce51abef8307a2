"""``Taken``: a stream of a group, and what of it is still to come."""

from collections.abc import Callable

from recipes.place.group.faults import GroupLost
from recipes.serve.outputs import Delta
from recipes.serve.stream import Stream


class Taken:
    """The jobs of one ``submit``.

    accepted: the group has queued them. touched: a delta was delivered.
    """

    def __init__(
        self, stream: Stream, model: str, on_lost: Callable[[Stream, GroupLost], object] | None
    ) -> None:
        self.stream, self.model = stream, model
        self.accepted = self.touched = False
        self._on_lost = on_lost
        self._open = {job.request_id: set(range(job.params.n)) for job in stream.jobs}

    def num_open(self, request_id: str) -> int:
        """Samples of a job that have not ended."""
        return len(self._open[request_id])

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

    def end(self, lost: GroupLost) -> None:
        """The group is gone: what nothing was seen of may be tried elsewhere."""
        if self.stream.cancelled is not None:
            return
        if self.touched:
            for request_id, left in self._open.items():
                for index in sorted(left):
                    delta = Delta(request_id, index, [], "", finish_reason="error", error=str(lost))
                    self.stream.put(delta)
        elif self._on_lost is not None:
            self._on_lost(self.stream, lost)
        else:
            self.stream.fail(lost)
