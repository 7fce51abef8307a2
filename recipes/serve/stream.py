"""``Stream``: what an engine makes of one or more jobs, delta by delta."""

import asyncio
import collections
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence

from recipes.serve.job import Job
from recipes.serve.outputs import Delta


class Stream:
    """The deltas of one or more jobs, in the order they are made.

    Iterating ends when every sample has finished. ``cancel`` may be called at any time, twice too.

    was_read: whether anybody has had a delta. While nobody has, the work may be begun anew.
    """

    def __init__(self, jobs: Sequence[Job], cancel: Callable[["Stream", str], None]) -> None:
        self.jobs = jobs
        self.positions = {job.request_id: at for at, job in enumerate(jobs)}
        self.started = time.perf_counter()
        self.cancelled: str | None = None
        self.failed: Exception | None = None
        self._cancel = cancel
        self._deltas: collections.deque[Delta] = collections.deque()
        self._ready = asyncio.Event()
        self.num_samples = self._open = sum(job.params.n for job in jobs)
        self._broken = self.was_read = False
        self._observers: list[Callable[[Delta], object]] = []
        self._on_cancel: list[Callable[[str], object]] = []
        self._on_restart: list[Callable[[], object]] = []

    @property
    def remaining(self) -> int:
        """Samples that have not ended."""
        return self._open

    @property
    def done(self) -> bool:
        return self._open == 0

    def observe(self, observer: Callable[[Delta], object]) -> None:
        """Call ``observer`` with every delta too; with those that nobody has read yet, at once."""
        for delta in self._deltas:
            observer(delta)
        self._observers.append(observer)

    def on_cancel(self, told: Callable[[str], object]) -> None:
        """Call ``told`` with the cause when the stream is cancelled."""
        self._on_cancel.append(told)

    def on_restart(self, told: Callable[[], object]) -> None:
        """Call ``told`` when the work is begun anew: the deltas so far count no more."""
        self._on_restart.append(told)

    def put(self, delta: Delta) -> None:
        self._deltas.append(delta)
        self._open -= delta.finish_reason is not None
        self._broken |= delta.finish_reason in ("error", "cancelled")
        for observer in self._observers:
            observer(delta)
        self._ready.set()

    def cancel(self, cause: str) -> None:
        """Stop the work; waiting readers wake up with ``StreamCancelled``."""
        if self.cancelled is None and not self.done:
            self.cancelled = cause
            self._cancel(self, cause)
            for told in self._on_cancel:
                told(cause)
        self._ready.set()

    def fail(self, error: Exception) -> None:
        """No more deltas will come: readers get what there is, then this error."""
        if not self.done:
            self.failed = error
        self._ready.set()

    def restart(self) -> None:
        """Forget the deltas, of which nobody has had any: they will be made anew."""
        assert not self.was_read, "somebody has read of it"
        self._deltas.clear()
        self._open, self._broken = self.num_samples, False
        for told in self._on_restart:
            told()

    def hand_over(self, cancel: Callable[["Stream", str], None]) -> None:
        """Another engine takes up the work of a stream that failed; ``cancel`` stops it there."""
        self.failed = None
        self._cancel = cancel

    async def batches(self, *, limit: float, heartbeat: float) -> AsyncIterator[list[Delta]]:
        """All deltas there are, as lists; an empty list after ``heartbeat`` seconds of silence.

        Raises:
            StreamCancelled: somebody called ``cancel`` before the end, or ``limit`` seconds have
                passed since the stream began.
            Exception: what the stream was failed with.
        """
        while True:
            while not self._deltas:
                self._check()
                if self.done:
                    return
                if not await self._stirs(limit, heartbeat):
                    yield []
            yield self._read()

    async def whole(self, *, limit: float) -> list[Delta]:
        """All deltas together, once every sample has ended, or one of them with an error.

        Until then none of them counts as read.

        Raises:
            StreamCancelled, Exception: as ``batches``.
        """
        while not (self.done or self._broken):
            self._check()
            await self._stirs(limit, math.inf)
        return self._read()

    def _check(self) -> None:
        if self.cancelled is not None:
            raise StreamCancelled(self.cancelled)
        if self.failed is not None:
            raise self.failed

    def _read(self) -> list[Delta]:
        deltas, self.was_read = list(self._deltas), True
        self._deltas.clear()
        return deltas

    async def _stirs(self, limit: float, most_s: float) -> bool:
        """Wait until something happens, at most ``most_s`` seconds; whether it did."""
        self._ready.clear()
        left_s = self.started + limit - time.perf_counter()
        if left_s <= 0:
            self.cancel("timeout")
            return True
        try:
            async with asyncio.timeout(min(most_s, left_s)):
                await self._ready.wait()
        except TimeoutError:
            return False
        return True


class StreamCancelled(Exception):
    """The stream was given up; the argument says why."""
