"""``lower``: a schedule with its sends and receives written out. Needs no torch."""

import dataclasses
from typing import NamedTuple

from blocks._checks import check
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.dependencies import dependencies, is_lowered, sender
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.simulate import Duration, receive_of, simulate
from blocks.pipeline.timeline import Number


def lower(schedule: Schedule, duration: Duration | None = None) -> Schedule:
    """The same programs with a send after every producer whose consumer is on another rank, and
    its receive where that rank should post it.

    The schedule is simulated, and every message takes its place in one order of all events: the
    end of its producer. Each rank's program is that order, as far as it concerns the rank. So

    - no choice of channels or buffers can deadlock it: sends may be buffered or wait for their
      receive, receives may wait for their send; the first event of the order that is not done can
      always be done;
    - the k-th send from a rank to another meets the k-th receive there from it;
    - a receive is posted when its message is due and not before: where ``duration`` is right, no
      rank waits at a receive for what it does not need yet.

    Args:
        schedule: compute actions alone.
        duration: time of compute actions, all above zero; 2 for a full backward and 1 for anything
            else when None.

    Raises:
        ValueError: a schedule that is lowered already, an action that takes no time.
        Deadlock: a schedule that cannot run.

    >>> from blocks.pipeline.schedules import one_f_one_b
    >>> lower(one_f_one_b(2, (1,))).programs
    ((F0(0,0), SF0>1(0,0), RB0>1(0,0), BW0(0,0)), (RF1>0(0,0), F1(0,0), BW1(0,0), SB1>0(0,0)))
    """
    expected = "compute actions alone"
    check(not is_lowered(schedule), "schedule", expected, "sends and receives", "lower it once")
    times = duration if duration is not None else _usual
    timeline = simulate(schedule, times)
    graph = dependencies(schedule)
    events: list[list[_Event]] = [[] for _ in schedule.programs]
    ends: list[Number] = []
    for rank, spans in enumerate(timeline.spans):
        for action, start, end in spans:
            check(end > start, f"duration of {action}", "above zero", end - start)
            events[rank].append(_Event(start, 1, 0, action))
            ends.append(end)
    messages = 0
    for number in graph.order:
        for producer in graph.remote[number]:
            receive = receive_of(graph.actions[number], graph.actions[producer])
            send = sender(schedule, receive)
            for rank, action in ((graph.ranks[producer], send), (graph.ranks[number], receive)):
                events[rank].append(_Event(ends[producer], 0, messages, action))
            messages += 1
    programs = tuple(tuple(event.action for event in sorted(rank)) for rank in events)
    return dataclasses.replace(schedule, programs=programs)


class _Event(NamedTuple):
    """Sorts by time, messages before what starts then, messages of one time in one order."""

    time: Number
    computes: int
    message: int
    action: Action


def _usual(action: Action) -> int:
    return 2 if action.kind is Kind.FULL_BACKWARD else 1
