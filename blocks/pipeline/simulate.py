"""``simulate``: when every action of a schedule starts and ends, given how long each takes.

Exact: times are only added and compared, so integers and fractions stay what they are. Needs no
torch.
"""

from collections.abc import Callable

from blocks._checks import fail
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.dependencies import dependencies
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.timeline import Number, Span, Timeline

Duration = Callable[[Action], Number]


def simulate(
    schedule: Schedule, duration: Duration, *, transfer: Duration | None = None
) -> Timeline:
    """Every rank does its program in order, each action as soon as what it needs is there.

    Args:
        schedule: with or without sends and receives; without, the edges between ranks imply them.
        duration: seconds of a compute action (or any other unit, kept throughout). Sends and
            receives take none of their rank's time.
        transfer: seconds between the end of a producer (or its send) and its arrival at another
            rank, asked for the receive (``RF``, ``RB``) that brings it; none when None. Channels
            have no limit of their own: transfers do not wait for one another.

    Raises:
        ValueError: a negative time.
        Deadlock: some ranks wait for ever; each is named with its action and what it waits for.

    >>> both = [(Action(Kind.FORWARD, s, 0, 0, 0), Action(Kind.FULL_BACKWARD, s, 0, 0, 0))
    ...         for s in range(2)]
    >>> chain = Schedule("chain", (0, 1), (1,), tuple(both))
    >>> time = simulate(chain, lambda action: 1 if action.kind is Kind.FORWARD else 2)
    >>> time.makespan, time.bubble
    (6, Fraction(1, 2))
    """
    graph = dependencies(schedule)
    actions, ranks, remote = graph.actions, graph.ranks, graph.remote
    clock: list[Number] = [0] * schedule.num_ranks
    starts: list[Number] = [0] * len(actions)
    ends: list[Number] = [0] * len(actions)
    for number in graph.order:
        rank = ranks[number]
        start = clock[rank]
        for before in remote[number]:
            ready = ends[before]
            if transfer is not None:
                receive = receive_of(actions[number], actions[before])
                ready = ready + transfer(receive)
                if not ready >= ends[before]:
                    raise fail(f"transfer of {receive}", "zero or more", transfer(receive))
            if ready > start:
                start = ready
        starts[number] = start
        action = actions[number]
        end = start + duration(action) if action.kind.computes else start
        if not end >= start:  # also where it is no number
            raise fail(f"duration of {action}", "zero or more", duration(action))
        ends[number] = clock[rank] = end
    spans, first = [], 0
    for program in schedule.programs:
        last = first + len(program)
        times = zip(program, starts[first:last], ends[first:last], strict=True)
        spans.append(tuple(map(Span._make, times)))
        first = last
    return Timeline(schedule, tuple(spans), transfer)


def receive_of(consumer: Action, producer: Action) -> Action:
    """The receive that brings what ``producer`` made, or its send carries, to ``consumer``."""
    forward = consumer.kind is Kind.FORWARD
    return consumer.on(Kind.RECEIVE_FORWARD if forward else Kind.RECEIVE_BACKWARD, producer.stage)
