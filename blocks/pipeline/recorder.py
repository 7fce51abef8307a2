"""``Recorder``: collects what one rank does in a step into a ``Trace``. Needs no torch."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from blocks.pipeline.schedule import Schedule
from blocks.pipeline.trace import Fact, Origin, Trace, TraceEvent


class Recorder:
    """Made right after a barrier of all ranks, then called with every event of the step.

    >>> from blocks.pipeline import Action, Kind
    >>> action = Action(Kind.FORWARD, 0, 0, 0, 0)
    >>> schedule = Schedule("one", (0,), (1,), ((action,),))
    >>> recorder = Recorder(0, schedule, [(0, 8)], {"step": 3}, clock=lambda: 1_000)
    >>> recorder(TraceEvent(0, action, start_ns=1_500, end_ns=1_900))
    >>> recorder.trace().events[0][2:4]
    (500, 900)
    """

    def __init__(
        self,
        rank: int,
        schedule: Schedule,
        bounds: Sequence[Sequence[int]],
        meta: Mapping[str, Fact] | None = None,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        live_bytes: Callable[[], int] | None = None,
        digest: Callable[[], str] | None = None,
    ) -> None:
        """
        Args:
            rank: whose events come.
            schedule: what it follows.
            bounds: see ``Trace``.
            meta: facts of the run; ``step`` tells the steps of a run apart.
            clock: the clock the events are timed with, in nanoseconds; read once, here.
            live_bytes: asked after every event for what the rank holds, such as the count of the
                device's allocator; events keep their own count when None.
            digest: asked after every event for a hash of what was made, see ``Digests.take``.
        """
        self._rank, self._schedule = rank, schedule
        self._bounds = tuple(map(tuple, bounds))
        self._meta = dict(meta or {})
        self._live_bytes, self._digest = live_bytes, digest
        self._events: list[TraceEvent] = []
        name = name_of_clock() if clock is time.monotonic_ns else ""
        self._origin = Origin(name or f"rank {rank}", clock())

    def __call__(self, event: TraceEvent) -> None:
        """Keep an event whose times are readings of the clock."""
        if self._live_bytes is not None:
            event = event._replace(live_bytes=self._live_bytes())
        if self._digest is not None:
            event = event._replace(digest=self._digest())
        self._events.append(event)

    def trace(self, losses: Sequence[Sequence[float]] = ()) -> Trace:
        """What came so far, on a clock that reads zero where the recorder was made."""
        zero = self._origin.reading_ns
        events = tuple(
            event._replace(start_ns=event.start_ns - zero, end_ns=event.end_ns - zero)
            for event in self._events
        )
        origins = {self._rank: self._origin}
        kept = tuple(map(tuple, losses))
        return Trace(self._schedule, self._bounds, events, self._meta, kept, origins)


@functools.cache
def name_of_clock() -> str:
    """A name of the monotonic clock that all processes of this machine share until it restarts;
    empty where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
