"""``Trace``: what every rank did in one training step, and when. Needs no torch."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blocks._checks import check
from blocks.pipeline._bounds import check_bounds
from blocks.pipeline.action import Action
from blocks.pipeline.schedule import Schedule

UNMEASURED = -1
"""Stands for a number of bytes or nanoseconds that nobody measured."""

Fact = str | int | float | bool
"""What a run says about itself: plain JSON."""


class TraceEvent(NamedTuple):
    """One action as a rank did it.

    A receive lasts as long as the rank stood still for its tensor, a send as long as handing the
    tensor over took the rank: on one rank no two events overlap.

    rank: who did it.
    action: what it did.
    start_ns, end_ns: when, in nanoseconds after the origin of the rank's clock (see ``Origin``).
    cpu_ns: CPU time of the thread that did it; ``UNMEASURED`` where nobody asked. Far below
        ``end_ns - start_ns``, it says that the thread was kept from running.
    live_bytes: activations, keys and values, accumulators and put-aside inputs that the rank
        holds when the action ends; ``UNMEASURED`` where nobody counted.
    digest: of the tensors the action made, for comparing runs; empty where nobody hashed.

    >>> TraceEvent(0, Action.parse("F0(0,1)", 0), 2_000, 5_000).duration_ns
    3000
    """

    rank: int
    action: Action
    start_ns: int
    end_ns: int
    cpu_ns: int = UNMEASURED
    live_bytes: int = UNMEASURED
    digest: str = ""

    @property
    def duration_ns(self) -> int:
        return self.end_ns - self.start_ns


class Origin(NamedTuple):
    """Where a rank's clock read zero.

    clock: names the clock the rank read; ranks that read the same clock (of the same machine
        since the same start) can be aligned exactly.
    reading_ns: what that clock read at the rank's zero, which is taken right after a barrier.
    """

    clock: str
    reading_ns: int


@dataclasses.dataclass(frozen=True)
class Trace:
    """What some or all ranks did in one step.

    schedule: what they were to do.
    bounds: for every sequence the token at which each slice begins, and the length at the end.
    events: what they did; those of one rank in the order it did them.
    meta: facts of the run, such as ``step``, ``device``, ``commit``.
    losses: summed loss of every slice of every sequence; empty where not recorded.
    origins: for every rank that was traced, where its clock read zero.
    """

    schedule: Schedule
    bounds: tuple[tuple[int, ...], ...]
    events: tuple[TraceEvent, ...]
    meta: Mapping[str, Fact] = dataclasses.field(default_factory=dict)
    losses: tuple[tuple[float, ...], ...] = ()
    origins: Mapping[int, Origin] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        num_slices = self.schedule.num_slices
        check_bounds(self.bounds, num_slices)
        if self.losses:
            counts = tuple(map(len, self.losses))
            check(counts == num_slices, "losses", f"one a slice, {num_slices}", counts)
        last: dict[int, int] = {}
        for event in self.events:
            self._check_event(event, last.get(event.rank))
            last[event.rank] = event.end_ns
        for rank in self.origins:
            known = 0 <= rank < self.schedule.num_ranks
            check(known, "rank of an origin", f"below {self.schedule.num_ranks}", rank)

    def _check_event(self, event: TraceEvent, ended_ns: int | None) -> None:
        rank, action = event.rank, event.action
        known = 0 <= rank < self.schedule.num_ranks
        check(known, f"rank of {action}", f"below {self.schedule.num_ranks}", rank)
        self.schedule.check_action(rank, action)
        named = f"{action} on rank {rank}"
        check(event.duration_ns >= 0, named, "an end after its start", event[2:4])
        apart = ended_ns is None or event.start_ns >= ended_ns
        check(apart, named, f"a start after the event before it, {ended_ns} ns", event.start_ns)

    @functools.cached_property
    def by_rank(self) -> tuple[tuple[TraceEvent, ...], ...]:
        """For every rank of the schedule its events in order; none where it was not traced."""
        found: list[list[TraceEvent]] = [[] for _ in self.schedule.programs]
        for event in self.events:
            found[event.rank].append(event)
        return tuple(tuple(events) for events in found)

    @property
    def makespan_ns(self) -> int:
        """From the first start on any rank to the last end on any rank; 0 without events."""
        if not self.events:
            return 0
        return max(e.end_ns for e in self.events) - min(e.start_ns for e in self.events)

    def tokens(self, action: Action) -> tuple[int, int]:
        """The tokens ``[start, stop)`` of the sequence that an action works on."""
        bounds = self.bounds[action.sequence]
        return bounds[action.slice], bounds[action.slice + 1]


def merge(traces: Sequence[Trace]) -> Trace:
    """One trace of traces that different ranks made of the same step.

    Ranks that read one clock are aligned by it; where clocks differ, zeros are taken to have been
    at the same time, which is as exact as the barrier after which they were taken. Of facts that
    differ, the lowest rank's hold. Losses are those of the one rank that recorded any.

    Raises:
        ValueError: traces of different schedules, slices or steps, or twice the same rank.
    """
    check(len(traces) > 0, "traces", "at least one", "none")
    first = min(traces, key=lambda trace: min(trace.origins, default=0))
    origins: dict[int, Origin] = {}
    for trace in traces:
        same = trace.schedule == first.schedule and trace.bounds == first.bounds
        check(same, "traces", f"all of schedule {first.schedule.name} and its slices", "others too")
        steps = first.meta.get("step"), trace.meta.get("step")
        check(steps[0] == steps[1], "traces", f"all of step {steps[0]}", f"step {steps[1]} too")
        twice = sorted(set(origins) & set(trace.origins))
        check(not twice, "traces", "every rank once", f"ranks {twice} twice")
        origins.update(trace.origins)
        stray = sorted({event.rank for event in trace.events} - set(trace.origins))
        check(not stray, "traces", "an origin of every rank", f"none of ranks {stray}")
    shift = _shifts(origins)
    events = [_later(event, shift[event.rank]) for trace in traces for event in trace.events]
    events.sort(key=lambda event: (event.start_ns, event.rank))
    losses = [trace.losses for trace in traces if trace.losses]
    check(len(losses) <= 1, "losses", "of one rank", f"of {len(losses)}")
    meta = {**{k: v for trace in traces for k, v in trace.meta.items()}, **first.meta}
    moved = {
        rank: origin._replace(reading_ns=origin.reading_ns - shift[rank])
        for rank, origin in sorted(origins.items())
    }
    kept = losses[0] if losses else ()
    return Trace(first.schedule, first.bounds, tuple(events), meta, kept, moved)


def _shifts(origins: Mapping[int, Origin]) -> dict[int, int]:
    """For every rank, how much later than the earliest zero of its clock its own zero is."""
    earliest: dict[str, int] = {}
    for clock, reading_ns in origins.values():
        earliest[clock] = min(reading_ns, earliest.get(clock, reading_ns))
    return {rank: origin.reading_ns - earliest[origin.clock] for rank, origin in origins.items()}


def _later(event: TraceEvent, shift_ns: int) -> TraceEvent:
    return event._replace(start_ns=event.start_ns + shift_ns, end_ns=event.end_ns + shift_ns)
