"""The bridge between the event loop and the engine's thread.

The engine runs in a thread of its own: torch lets go of the interpreter while it computes, so the
loop goes on serving. Commands travel to the thread through a deque, deltas travel back through one
``call_soon_threadsafe`` per step. Only the loop touches streams, only the thread the engine.
"""

import asyncio
import collections
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from blocks._checks import check
from blocks.sched import QueueFull
from recipes.serve.job import Job
from recipes.serve.metrics import Metrics
from recipes.serve.outputs import Delta
from recipes.serve.stream import Stream

log = logging.getLogger("recipes.serve")


class StepEngine(Protocol):
    """What the bridge needs of an engine; ``recipes.serve.Engine`` meets it."""

    def has_work(self) -> bool: ...

    def add(self, job: Job) -> None: ...

    def cancel(self, request_id: str) -> bool: ...

    def step(self) -> list[Delta]: ...

    def abort_all(self, error: str) -> list[Delta]: ...


class ServingEngine(Protocol):
    """What the routes of a model need of whatever answers its requests; ``AsyncEngine`` meets it,
    whose words these are."""

    def start(self) -> None: ...

    async def stop(self) -> None: ...

    @property
    def is_alive(self) -> bool: ...

    @property
    def num_in_flight(self) -> int: ...

    def seconds_stalled(self) -> float: ...

    def new_id(self) -> str: ...

    async def submit(self, jobs: Sequence[Job]) -> Stream: ...


class AsyncEngine:
    """Runs an engine in a thread and hands each request its deltas on the event loop.

    Args:
        engine: driven from the thread only.
        max_sequences: most samples in flight, queue included; more raise ``QueueFull`` at once.
        metrics: told about every delta; None for none.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        engine: StepEngine,
        *,
        max_sequences: int = 4096,
        metrics: Metrics | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._max_sequences = max_sequences
        self._metrics = metrics
        self._clock = clock
        self._commands: collections.deque[Callable[[], object]] = collections.deque()
        self._wake = threading.Event()
        self._streams: dict[str, Stream] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ids = itertools.count()
        self._num_sequences = 0
        self._stopping = False
        self._last_progress = clock()

    def start(self) -> None:
        """Start the thread; call on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Cancel what runs and end the thread after its current step."""
        for stream in set(self._streams.values()):
            stream.cancel("shutdown")
        await asyncio.to_thread(self.join, 10)

    def join(self, seconds: float) -> None:
        """End the thread after its current step, waiting at most ``seconds``."""
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def num_in_flight(self) -> int:
        """Samples that were accepted and have not ended."""
        return self._num_sequences

    def seconds_stalled(self) -> float:
        """How long work has been pending without a completed step; 0 when idle."""
        busy = self._num_sequences or self._commands
        return self._clock() - self._last_progress if busy else 0.0

    def new_id(self) -> str:
        """A request id nobody else has; clients' ids are never used as keys."""
        return f"r{next(self._ids)}"

    async def submit(self, jobs: Sequence[Job]) -> Stream:
        """Queue jobs: all of them or none.

        Raises:
            QueueFull: too much in flight, or the scheduler's queue is full.
            ValueError: a job that can never run, in the words of the engine.
        """
        wanted = sum(job.params.n for job in jobs)
        check(wanted <= self._max_sequences, "n", f"at most {self._max_sequences} samples", wanted)
        if self._num_sequences + wanted > self._max_sequences:
            raise QueueFull(f"{self._num_sequences} samples are in flight already")
        stream = Stream(jobs, self._cancel)
        for job in jobs:
            self._streams[job.request_id] = stream
        if self._num_sequences == 0:
            self._last_progress = self._clock()
        self._num_sequences += wanted
        accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._send(lambda: self._add(jobs, accepted))
        try:
            await accepted
        except BaseException as error:  # a cancelled handler too: nobody would read the stream
            self._forget(stream)
            if isinstance(error, asyncio.CancelledError):
                stream.cancel("client_left")
            raise
        return stream

    def _cancel(self, stream: Stream, cause: str) -> None:
        log.info("cancelling %s: %s", ", ".join(stream.positions), cause)
        if self._metrics is not None:
            self._metrics.cancelled(cause)
        self._forget(stream)
        self._send(lambda: [self._engine.cancel(job.request_id) for job in stream.jobs])

    def _forget(self, stream: Stream) -> None:
        """Deltas that are still on their way are dropped from here on."""
        known = [self._streams.pop(job.request_id, None) for job in stream.jobs]
        if any(known):
            self._num_sequences -= stream.remaining

    def _send(self, command: Callable[[], object]) -> None:
        self._commands.append(command)
        self._wake.set()

    def _deliver(self, deltas: list[Delta]) -> None:
        for delta in deltas:
            stream = self._streams.get(delta.request_id)
            if stream is None:
                continue
            stream.put(delta)
            if delta.finish_reason is not None:
                self._num_sequences -= 1
                if stream.done:
                    for job in stream.jobs:
                        self._streams.pop(job.request_id, None)

    # ---- the engine's thread ----

    def _run(self) -> None:
        torch.set_num_threads(torch.get_num_threads())  # OpenMP keeps the count per thread
        while not self._stopping:
            if not self._engine.has_work() and not self._commands:
                self._wake.wait()
                self._wake.clear()
            while self._commands:
                self._guarded(self._commands.popleft())
            if self._engine.has_work():
                self._guarded(lambda: self._post(self._engine.step()))
                self._last_progress = self._clock()

    def _guarded(self, work: Callable[[], object]) -> None:
        try:
            work()
        except Exception:  # the engine contains what requests cause; this is its own fault
            log.exception("the engine failed; every running request ends with an error")
            self._post(self._engine.abort_all("internal engine error"))

    def _add(self, jobs: Sequence[Job], accepted: asyncio.Future[None]) -> None:
        added: list[Job] = []
        try:
            for job in jobs:
                self._engine.add(job)
                added.append(job)
        except Exception as error:
            for job in added:
                self._engine.cancel(job.request_id)
            self._call_loop(_settle, accepted, error)
        else:
            self._call_loop(_settle, accepted, None)

    def _post(self, deltas: list[Delta]) -> None:
        if deltas:
            self._call_loop(self._deliver, deltas)

    def _call_loop(self, function: Callable[..., None], *args: object) -> None:
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:  # the loop has closed: nobody is left to tell
            self._stopping = True


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
