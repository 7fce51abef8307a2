"""What a trace says about time: its timeline, and what each action and transfer took.

Needs no torch.
"""

import statistics
from collections.abc import Iterator
from typing import Literal

from blocks._checks import check, fail
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.timeline import Span, Timeline
from blocks.pipeline.trace import UNMEASURED, Trace, TraceEvent

Clock = Literal["wall", "cpu"]
RECEIVES = (Kind.RECEIVE_FORWARD, Kind.RECEIVE_BACKWARD)


def measured_timeline(trace: Trace) -> Timeline:
    """The compute actions as they ran, in seconds after the first of them began."""
    zero = min((e.start_ns for e in trace.events if e.action.kind.computes), default=0)
    spans = tuple(
        tuple(
            Span(e.action, (e.start_ns - zero) * 1e-9, (e.end_ns - zero) * 1e-9)
            for e in events
            if e.action.kind.computes
        )
        for events in trace.by_rank
    )
    return Timeline(trace.schedule, spans)


def durations_s(trace: Trace, clock: Clock = "wall") -> dict[Action, float]:
    """Seconds that every compute action took of its rank.

    By the wall clock that is all of the rank's time since the action before, less what it waited
    for receives: handing over tensors and the executor's own work count towards the action after
    them. A trace without receives cannot tell work from waiting; there each action counts from its
    own start. By the CPU clock it is what the thread computed inside the action.

    Raises:
        ValueError: an action that was done twice or not at all; CPU time that was not measured.
    """
    found: dict[Action, float] = {}
    for rank, events in enumerate(trace.by_rank):
        for event, taken_ns in _taken(events):
            twice = event.action in found
            check(not twice, f"{event.action} on rank {rank}", "one in a step", "another")
            if clock == "cpu":
                known = event.cpu_ns != UNMEASURED
                check(known, f"CPU time of {event.action} on rank {rank}", "measured", "none")
                taken_ns = event.cpu_ns
            found[event.action] = taken_ns * 1e-9
        for action in trace.schedule.programs[rank]:
            if action.kind.computes and action not in found:
                raise fail(f"{action} on rank {rank}", "in the trace", "none", "merge all ranks")
    return found


def _taken(events: tuple[TraceEvent, ...]) -> Iterator[tuple[TraceEvent, int]]:
    """The compute events of one rank, each with the nanoseconds it took of the rank."""
    tells_waits = any(event.action.kind in RECEIVES for event in events)
    since = events[0].start_ns if events else 0
    for event in events:
        if event.action.kind in RECEIVES:
            since += event.duration_ns
        elif event.action.kind.computes:
            yield event, event.end_ns - (since if tells_waits else event.start_ns)
            since = event.end_ns


def transfer_s(trace: Trace) -> float:
    """Seconds from the end of a producer to the arrival at a rank that was waiting already.

    The median over such arrivals, 0 where there are none. Ranks that were not waiting say nothing
    about when a tensor arrived.
    """
    ends = {e.action: e.end_ns for e in trace.events if e.action.kind.computes}
    seen = []
    for event in trace.events:
        if event.action.kind in RECEIVES:
            ended = _end_of_producer(trace, event.action, ends)
            if ended is not None and event.start_ns < ended <= event.end_ns:
                seen.append(event.end_ns - ended)
    return statistics.median(seen) * 1e-9 if seen else 0.0


def _end_of_producer(trace: Trace, receive: Action, ends: dict[Action, int]) -> int | None:
    forward = receive.kind is Kind.RECEIVE_FORWARD
    kinds = (Kind.FORWARD,) if forward else (Kind.BACKWARD, Kind.FULL_BACKWARD)
    chunk = trace.schedule.chunks[receive.peer]
    for kind in kinds:
        made = Action(kind, receive.peer, chunk, receive.sequence, receive.slice)
        if made in ends:
            return ends[made]
    return None


def wall_over_cpu(trace: Trace) -> tuple[float, ...]:
    """For every rank, wall time of its compute actions over their CPU time.

    Well above 1, other work kept the rank's thread from running and the trace says little about
    the machine at rest. 0 where the rank did not compute or its CPU time was not measured.
    """
    ratios = []
    for events in trace.by_rank:
        computed = [e for e in events if e.action.kind.computes]
        cpu = sum(e.cpu_ns for e in computed)
        known = computed and all(e.cpu_ns != UNMEASURED for e in computed) and cpu > 0
        ratios.append(sum(e.duration_ns for e in computed) / cpu if known else 0.0)
    return tuple(ratios)
