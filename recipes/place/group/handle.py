"""``GroupHandle``: a group as the front door's event loop knows it."""

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Sequence

from blocks._checks import check
from blocks.sched import QueueFull
from recipes.place.group.asked import Asked
from recipes.place.group.faults import GroupLost, LostReason, NotHosted, how_it_ended
from recipes.place.group.frames import Frames, GarbledFrame
from recipes.place.group.local import GroupProcess
from recipes.place.group.messages import (
    Beat,
    Cancel,
    Deltas,
    Host,
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
from recipes.place.group.streams import Streams
from recipes.place.group.taken import OnLost, Taken
from recipes.place.group.watch import Pulse, exit_of, watch_pulse, watch_start
from recipes.serve.job import Job
from recipes.serve.stream import Stream, StreamCancelled

log = logging.getLogger("recipes.place")
READ_BYTES = 1 << 18
GRACE_S = 0.5
"""After a connection has ended, how long to wait for the exit code that says why."""
RANKS_SLACK_S = 30.0
"""That ranks which hang are left to the group itself, before the whole group counts as stuck."""


class GroupHandle:
    """One group that was started; made by ``Listener.start``, used on its event loop only.

    Invariants:
        1. Every stream handed out ends: with its last delta, or where what computed it is lost, by
           ``on_lost`` if nobody has read of it; else with deltas whose ``finish_reason`` is
           ``error``, or with ``GroupLost`` if there was none yet.
        2. Every call that waits for the group returns, or raises ``GroupLost`` once it is lost.

    spec: of the group. process: that it runs in.
    state: how it was at ``state_s`` on this process's monotonic clock.
    models: those that take requests. lost: why it is at an end; None while it is not.
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
        self.state, self.state_s = GroupState(), time.monotonic()
        self.models: dict[str, Loaded] = {}
        self.lost: LostReason | None = None
        self._silence_s, self._start_timeout_s = silence_s, start_timeout_s
        self._max_sequences = max_sequences
        self._writer: asyncio.StreamWriter | None = None
        self._asked, self._streams = Asked(), Streams()
        self._loading: dict[int, str] = {}
        self._ids = itertools.count()
        self._up, self._ended = asyncio.Event(), asyncio.Event()
        self._closing = False
        self._pulse = Pulse()
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
        self._closing = True
        self._send(Stop())
        if self.lost is None and self._writer is not None:
            await exit_of(self.process, patience_s)
        self._lose(LostReason("closed", "it was asked to go"))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def is_connected(self) -> bool:
        return self._writer is not None

    @property
    def is_alive(self) -> bool:
        """Whether requests can be handed to it."""
        return self.lost is None and self._up.is_set()

    @property
    def is_over(self) -> bool:
        """Whether it is lost and nothing is left to be done about it."""
        return self.lost is not None and all(task.done() for task in self._tasks)

    # ---- models ----

    async def load(self, replica: Replica) -> Loaded:
        """Host a model, while others go on being served.

        Raises:
            LoadFailed: it cannot be, in the words of the group, which goes on.
            GroupLost: the group is at an end.
        """
        number = self._asked.number()
        self._loading[number] = replica.model
        loaded = await self._ask(number, Host(number, replica))
        assert loaded is not None
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
        number = self._asked.number()
        await self._ask(number, Unload(number, model, drain_s))

    # ---- requests ----

    def new_id(self) -> str:
        """A request id that nobody else on this group has."""
        return f"{self.spec.group}-{next(self._ids)}"

    @property
    def num_in_flight(self) -> int:
        """Samples that were taken and have not ended."""
        return self._streams.num_sequences

    def unseen(self, model: str) -> tuple[int, ...]:
        """Prompt lengths of what was sent to a model and ``state`` does not count yet."""
        return self._streams.unseen(model)

    async def submit(
        self,
        model: str,
        jobs: Sequence[Job],
        *,
        ttft_s: float = math.inf,
        tpot_s: float = math.inf,
        stream: Stream | None = None,
        on_lost: OnLost | None = None,
    ) -> Stream:
        """Queue jobs: all of them or none.

        Args:
            ttft_s: seconds from now in which the first token is wanted; which of the group's
                models takes the next step goes by it. tpot_s: seconds for every later one.
            stream: that another group was lost with, to be gone on with here; of the same jobs.
            on_lost: called with the stream where what computes it is lost before anybody has read
                of it, instead of failing the stream; deltas so far are forgotten.

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
        self._streams.check_new(jobs)
        self._check_room(sum(job.params.n for job in jobs))
        number = self._asked.number()
        data = order_frame(Submit(number, model, list(jobs), ttft_s, tpot_s))
        if stream is None:
            stream = Stream(jobs, self._cancel)
        elif stream.cancelled is not None:
            raise StreamCancelled(stream.cancelled)
        else:
            stream.hand_over(self._cancel)
        taken = Taken(stream, model, on_lost)
        self._streams.add(number, taken)
        try:
            await self._ask(number, data)
        except BaseException as error:  # a cancelled handler too: nobody would read the stream
            self._streams.forget(taken)
            if isinstance(error, asyncio.CancelledError):
                stream.cancel("client_left")
                self._send(Cancel(model, list(stream.positions)))
            raise
        taken.accepted = True
        if self.lost is not None and not taken.touched:  # meanwhile; the end has passed this one by
            self._streams.forget(taken)
            self._check_alive()
        return stream

    def _check_room(self, wanted: int) -> None:
        limit, there = self._max_sequences, self._streams.num_sequences
        check(wanted <= limit, "n", f"at most {limit} samples", wanted)
        if there + wanted > limit:
            raise QueueFull(f"{there} samples are in flight on the group already")

    def _cancel(self, stream: Stream, cause: str) -> None:
        taken = self._streams.find(stream.jobs)
        if taken is not None and taken.stream is stream:
            log.info("cancelling %s: %s", ", ".join(stream.positions), cause)
            self._streams.forget(taken)
            self._send(Cancel(taken.model, list(stream.positions)))

    # ---- the line ----

    def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The group has called, and has proved to be it."""
        self._writer = writer
        self._tasks.append(asyncio.create_task(self._read(reader), name=f"read {self.spec.group}"))

    def _send(self, order: Order | bytes) -> None:
        if self._writer is not None and self.lost is None:
            self._writer.write(order if isinstance(order, bytes) else order_frame(order))

    async def _ask(self, number: int, order: Order | bytes) -> Loaded | None:
        self._check_alive()
        answer = self._asked.wait(number)
        self._send(order)
        return await answer

    def _check_alive(self) -> None:
        if self.lost is not None:
            raise GroupLost(self.spec.group, self.lost)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        frames = Frames()
        try:
            while data := await reader.read(READ_BYTES):
                self._pulse.beat()
                for payload in frames.feed(data):
                    self._hear(read_report(payload))
        except GarbledFrame as error:
            log.error("group %s is given up: %s", self.spec.group, error)
            self._lose(LostReason("garbled", f"it sent what is no message: {error}"))
            return
        except OSError as error:
            log.info("group %s: %s", self.spec.group, error)
        code = await exit_of(self.process, GRACE_S)
        text = "it closed its connection" if code is None else how_it_ended(code)
        self._lose(LostReason("ended", text))

    def _hear(self, report: Report) -> None:
        if isinstance(report, Deltas):
            self._streams.deliver(report.deltas)
        elif isinstance(report, Beat):
            self.state, self.state_s = report.state, time.monotonic()
            self._streams.seen(report.state.seen)
            self._check_step()
        elif isinstance(report, Up):
            self._up.set()
        else:
            model = self._loading.pop(report.number, None)
            if isinstance(report, Now) and model is not None:
                self.models[model] = report.loaded
            if isinstance(report, Refused):
                self._streams.refused(report.number)
            self._asked.settle(report)

    # ---- the end ----

    async def _watch(self) -> None:
        """See that the process comes up, and that it goes on giving signs of life."""
        reason = await watch_start(self.process, self._up, timeout_s=self._start_timeout_s)
        if reason is None:
            reason = await watch_pulse(self._pulse, self._ended, silence_s=self._silence_s)
        if reason is not None:
            self._lose(reason)

    def _check_step(self) -> None:
        spec, state = self.spec, self.state
        limit_s = spec.step_timeout_s + (RANKS_SLACK_S if spec.num_ranks > 1 else 0)
        if state.step_s > limit_s:
            text = f"a step of model {state.stepping} has taken {state.step_s:.1f} s"
            self._lose(LostReason("stuck", text))

    def _lose(self, reason: LostReason) -> None:
        if self.lost is not None:
            return
        self.lost = LostReason("closed", "it was asked to go") if self._closing else reason
        level = logging.INFO if self._closing else logging.ERROR
        log.log(level, "group %s: %s", self.spec.group, self.lost.text)
        self.models.clear()
        self.process.kill()
        if self._writer is not None:
            self._writer.close()
        self._up.set()
        self._ended.set()
        lost = GroupLost(self.spec.group, self.lost)
        self._asked.lose(lost)
        self._streams.lose(lost)
        self._tasks.append(asyncio.create_task(self._reap(), name=f"reap {self.spec.group}"))

    async def _reap(self) -> None:
        if await exit_of(self.process, 10.0) is None:
            log.error("group %s: its process does not end", self.spec.group)
