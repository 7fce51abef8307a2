"""``GroupHandle``: a group as the front door's event loop knows it."""

import asyncio
import contextlib
import itertools
import logging
import math
import signal
import time
from collections.abc import Callable, Sequence

from blocks._checks import check
from blocks.sched import QueueFull
from recipes.place.group.faults import GroupLost, LoadFailed, LostReason, NotHosted
from recipes.place.group.frames import Frames, GarbledFrame
from recipes.place.group.local import GroupProcess
from recipes.place.group.messages import (
    Beat,
    Cancel,
    Deltas,
    Done,
    Load,
    Now,
    Order,
    Refused,
    Report,
    Stop,
    Submit,
    Unload,
    Up,
    order_frame,
    read_report,
)
from recipes.place.group.replica import Loaded, Replica
from recipes.place.group.spec import GroupSpec
from recipes.place.group.state import GroupState
from recipes.place.group.taken import Taken
from recipes.serve.admission import ContextTooLong
from recipes.serve.async_engine import Stream, StreamCancelled
from recipes.serve.job import Job

log = logging.getLogger("recipes.place")
READ_BYTES = 1 << 18
GRACE_S = 0.5
"""After a connection has ended, how long to wait for the exit code that says why."""
RANKS_SLACK_S = 30.0
"""That ranks which hang are left to the group itself, before the whole group counts as stuck."""

Lost = Callable[[Stream, GroupLost], object]


class GroupHandle:
    """One group that was started; made by ``Listener.start``, used on its event loop only.

    Invariants:
        1. Every stream handed out ends: with its last delta, with ``GroupLost`` if none was made
           before the group was lost, else with deltas whose ``finish_reason`` is ``error``.
        2. Every call that waits for the group returns, or raises ``GroupLost`` once it is lost.

    spec: of the group. process: that it runs in.
    state: how it was when it last said so. models: those that take requests.
    lost: why it is at an end; None while it is not.
    """

    def __init__(
        self,
        spec: GroupSpec,
        process: GroupProcess,
        *,
        silence_s: float,
        start_timeout_s: float,
        max_sequences: int,
    ) -> None:
        self.spec, self.process = spec, process
        self.state = GroupState()
        self.models: dict[str, Loaded] = {}
        self.lost: LostReason | None = None
        self._silence_s, self._start_timeout_s = silence_s, start_timeout_s
        self._max_sequences = max_sequences
        self._writer: asyncio.StreamWriter | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[object]] = {}
        self._unloading: dict[int, str] = {}
        self._loading: dict[int, str] = {}
        self._taken: dict[str, Taken] = {}
        self._num_sequences = 0
        self._up = asyncio.Event()
        self._ended = asyncio.Event()
        self._heard_s = time.monotonic()
        self._missed = 0
        self._tasks = [asyncio.create_task(self._watch(), name=f"watch {spec.group}")]

    # ---- the group ----

    async def ready(self) -> None:
        """Wait until the group can be asked to load models.

        Raises:
            GroupLost: it never will.
        """
        await self._up.wait()
        self._check_alive()

    async def wait_lost(self) -> LostReason:
        """Wait until the group is at an end."""
        await self._ended.wait()
        assert self.lost is not None
        return self.lost

    async def close(self, patience_s: float = 5.0) -> None:
        """Tell the group to end, see that it does, and end what it still had to do."""
        self._send(Stop())
        if self.lost is None and self._writer is not None:
            await self._exit(patience_s)
        self._lose("closed", "it was asked to go")
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def is_connected(self) -> bool:
        return self._writer is not None

    @property
    def is_alive(self) -> bool:
        """Whether requests can be handed to it."""
        return self.lost is None and self._up.is_set()

    def seconds_silent(self) -> float:
        """Since the group last said anything."""
        return time.monotonic() - self._heard_s

    # ---- models ----

    async def load(self, replica: Replica) -> Loaded:
        """Host a model, while others go on being served.

        Raises:
            LoadFailed: it cannot be, in the words of the group, which goes on.
            GroupLost: the group is at an end.
        """
        number = next(self._numbers)
        self._loading[number] = replica.model
        loaded = await self._ask(number, Load(number, replica))
        assert isinstance(loaded, Loaded)
        return loaded

    async def unload(self, model: str, *, drain_s: float | None = None) -> None:
        """Take no more requests for a model, answer those that were taken, and free its memory.

        Args:
            drain_s: for the answers; what runs longer ends with an error. None: all it takes.

        Raises:
            NotHosted: the group has no such model.
            GroupLost: the group is at an end.
        """
        self.models.pop(model, None)
        number = next(self._numbers)
        await self._ask(number, Unload(number, model, drain_s))

    # ---- requests ----

    def new_id(self) -> str:
        """A request id that nobody else on this group has."""
        return f"{self.spec.group}-{next(self._numbers)}"

    @property
    def num_in_flight(self) -> int:
        """Samples that were taken and have not ended."""
        return self._num_sequences

    async def submit(
        self,
        model: str,
        jobs: Sequence[Job],
        *,
        ttft_s: float = math.inf,
        tpot_s: float = math.inf,
        stream: Stream | None = None,
        on_lost: Lost | None = None,
    ) -> Stream:
        """Queue jobs: all of them or none.

        Args:
            ttft_s: seconds from now in which the first token is wanted; which of the group's
                models takes the next step goes by it. tpot_s: seconds for every later one.
            stream: that another group was lost with, to be gone on with here; of the same jobs.
            on_lost: called with the stream where the group is lost before any of its deltas was
                made, instead of failing the stream.

        Raises:
            QueueFull: too much in flight, or the model's queue is full.
            ValueError: a job that can never run, in the words of the engine.
            NotHosted: the group does not serve the model.
            GroupLost: the group is at an end; nothing was queued.
            StreamCancelled: ``stream`` was given up meanwhile.
        """
        self._check_alive()
        if model not in self.models:
            raise NotHosted(f"group {self.spec.group} does not serve model {model}")
        wanted = sum(job.params.n for job in jobs)
        check(wanted <= self._max_sequences, "n", f"at most {self._max_sequences} samples", wanted)
        if self._num_sequences + wanted > self._max_sequences:
            raise QueueFull(f"{self._num_sequences} samples are in flight on the group already")
        for job in jobs:
            check(job.request_id not in self._taken, "request_id", "a new one", job.request_id)
        if stream is not None and stream.cancelled is not None:
            raise StreamCancelled(stream.cancelled)
        number = next(self._numbers)
        data = order_frame(Submit(number, model, list(jobs), ttft_s, tpot_s))
        if stream is None:
            stream = Stream(jobs, self._cancel)
        else:
            stream.hand_over(self._cancel)
        taken = Taken(stream, model, on_lost)
        for job in jobs:
            self._taken[job.request_id] = taken
        self._num_sequences += wanted
        try:
            await self._ask(number, data)
        except BaseException as error:  # a cancelled handler too: nobody would read the stream
            self._forget(taken)
            if isinstance(error, asyncio.CancelledError):
                stream.cancel("client_left")
                self._send(Cancel(model, list(stream.positions)))
            raise
        taken.accepted = True
        if self.lost is not None and not taken.touched:  # meanwhile; the end has passed this one by
            self._forget(taken)
            self._check_alive()
        return stream

    def _cancel(self, stream: Stream, cause: str) -> None:
        taken = self._taken.get(stream.jobs[0].request_id) if stream.jobs else None
        if taken is None or taken.stream is not stream:
            return
        log.info("cancelling %s: %s", ", ".join(stream.positions), cause)
        self._forget(taken)
        self._send(Cancel(taken.model, list(stream.positions)))

    def _forget(self, taken: Taken) -> None:
        """Deltas that are still on their way are dropped from here on."""
        for job in taken.stream.jobs:
            if self._taken.pop(job.request_id, None) is not None:
                self._num_sequences -= taken.num_open(job.request_id)

    # ---- the line ----

    def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The group has called, and has proved to be it."""
        self._writer = writer
        self._tasks.append(asyncio.create_task(self._read(reader), name=f"read {self.spec.group}"))

    def _send(self, order: Order | bytes) -> None:
        if self._writer is not None and self.lost is None:
            self._writer.write(order if isinstance(order, bytes) else order_frame(order))

    async def _ask(self, number: int, order: Order | bytes) -> object:
        self._check_alive()
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._send(order)
        return await future

    def _check_alive(self) -> None:
        if self.lost is not None:
            raise GroupLost(self.spec.group, self.lost)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames = Frames()
        try:
            while data := await reader.read(READ_BYTES):
                self._heard_s, self._missed = time.monotonic(), 0
                for payload in frames.feed(data):
                    self._hear(read_report(payload))
        except GarbledFrame as error:
            log.error("group %s is given up: %s", self.spec.group, error)
            self._lose("garbled", f"it sent what is no message: {error}")
            return
        except OSError as error:
            log.info("group %s: %s", self.spec.group, error)
        code = await self._exit(GRACE_S)
        self._lose("ended", "it closed its connection" if code is None else how_it_ended(code))

    def _hear(self, report: Report) -> None:
        if isinstance(report, Deltas):
            for delta in report.deltas:
                taken = self._taken.get(delta.request_id)
                if taken is not None and taken.put(delta):
                    self._num_sequences -= 1
                    if not taken.num_open(delta.request_id):
                        del self._taken[delta.request_id]
        elif isinstance(report, Beat):
            self.state = report.state
            self._check_step()
        elif isinstance(report, Up):
            self._up.set()
        else:
            self._settle(report)

    def _settle(self, report: Now | Done | Refused) -> None:
        """An answer to something that was asked."""
        model = self._loading.pop(report.number, None)
        if isinstance(report, Now) and model is not None:
            self.models[model] = report.loaded
        future = self._asked.pop(report.number, None)
        if future is None or future.done():
            return
        if isinstance(report, Refused):
            future.set_exception(error_of(report))
        else:
            future.set_result(report.loaded if isinstance(report, Now) else None)

    # ---- the end ----

    async def _watch(self) -> None:
        """See that the process comes up, and that it goes on giving signs of life."""
        deadline = time.monotonic() + self._start_timeout_s
        while self.lost is None and not self._up.is_set():
            code = self.process.exit_code()
            if code is not None and self._writer is None:
                self._lose("not_started", f"{how_it_ended(code)} before it called")
            elif time.monotonic() > deadline:
                self._lose("not_started", f"it did not call within {self._start_timeout_s:g} s")
            await self._pause(0.02)
        # Counted, not timed: when this loop itself was held up, nobody else was silent.
        tick_s = self._silence_s / 10
        self._missed = 0
        while self.lost is None:
            await self._pause(tick_s)
            self._missed += 1
            if self._missed > 10:
                self._lose("silent", f"no sign of life for {self._silence_s:g} s")

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ended.wait()

    def _check_step(self) -> None:
        spec = self.spec
        limit_s = spec.step_timeout_s + (RANKS_SLACK_S if spec.num_ranks > 1 else 0)
        if self.state.step_s > limit_s:
            text = f"a step of model {self.state.stepping} has taken {self.state.step_s:.0f} s"
            self._lose("stuck", text)

    async def _exit(self, patience_s: float) -> int | None:
        """The exit code, once there is one; None if there is none in time."""
        deadline = time.monotonic() + patience_s
        while True:
            code = self.process.exit_code()
            if code is not None or time.monotonic() >= deadline:
                return code
            await asyncio.sleep(0.005)

    def _lose(self, kind, text: str) -> None:
        if self.lost is not None:
            return
        self.lost = LostReason(kind, text)
        (log.info if kind == "closed" else log.error)("group %s: %s", self.spec.group, text)
        self.models.clear()
        self.process.kill()
        if self._writer is not None:
            self._writer.close()
        self._up.set()
        self._ended.set()
        lost = GroupLost(self.spec.group, self.lost)
        asked, self._asked = self._asked, {}
        for future in asked.values():
            if not future.done():
                future.set_exception(lost)
        streams = {id(taken): taken for taken in self._taken.values()}
        for taken in streams.values():
            if taken.accepted or taken.touched:  # others: submit raises
                self._forget(taken)
                taken.end(lost)
        self._tasks.append(asyncio.create_task(self._reap(), name=f"reap {self.spec.group}"))

    async def _reap(self) -> None:
        if await self._exit(10.0) is None:
            log.error("group %s: its process does not end", self.spec.group)


def how_it_ended(code: int) -> str:
    """An exit code in words.

    >>> how_it_ended(-9), how_it_ended(1)
    ('its process was killed by SIGKILL', 'its process ended with exit status 1')
    """
    if code < 0:
        return f"its process was killed by {_signal_name(-code)}"
    return f"its process ended with exit status {code}"


def error_of(report: Refused) -> Exception:
    """What to raise for a refusal."""
    if report.kind == "too_long" and report.numbers is not None:
        return ContextTooLong(*report.numbers)
    if report.kind == "internal":
        return RuntimeError(f"the group's engine failed ({report.text})")
    kinds = {"load": LoadFailed, "not_hosted": NotHosted, "queue_full": QueueFull}
    return kinds.get(report.kind, ValueError)(report.text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
