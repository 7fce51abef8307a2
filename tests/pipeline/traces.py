"""Traces made up for tests: every rank does its program with pauses between the actions."""

import random
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import strategies as st

from blocks.pipeline import Action, Kind, Origin, Schedule, Trace, TraceEvent
from blocks.pipeline.simulate import simulate


def chain(num_ranks: int, num_slices: tuple[int, ...], name: str = "chain") -> Schedule:
    """All forwards, then all backwards in the reverse order."""
    programs = []
    for stage in range(num_ranks):
        forward = [
            Action(Kind.FORWARD, stage, 0, sequence, piece)
            for sequence, count in enumerate(num_slices)
            for piece in range(count)
        ]
        backward = [action.on(Kind.FULL_BACKWARD) for action in reversed(forward)]
        programs.append((*forward, *backward))
    return Schedule(name, tuple(range(num_ranks)), num_slices, tuple(programs))


def made_up(schedule: Schedule, seed: int, step: int = 0) -> Trace:
    """Events that keep the order within a rank, and nothing else that a real run would keep."""
    rng = random.Random(seed)
    events, origins = [], {}
    for rank, program in enumerate(schedule.programs):
        now = 0
        origins[rank] = Origin("clock", 10**12)
        for action in program:
            start = now + rng.choice([0, 0, rng.randint(1, 1000)])
            now = start + rng.randint(0, 5000)
            live, digest = rng.choice([-1, rng.randint(0, 1 << 40)]), rng.choice(["", "c0ffee"])
            cpu = rng.choice([-1, now - start])
            events.append(TraceEvent(rank, action, start, now, cpu, live, digest))
    bounds = []
    for count in schedule.num_slices:
        cuts = rng.sample(range(1, 64), count)
        bounds.append((0, *sorted(cuts)))
    losses = tuple(tuple(rng.gauss(0, 1) for _ in range(n)) for n in schedule.num_slices)
    events.sort(key=lambda event: (event.start_ns, event.rank))
    meta = {"step": step, "device": "made up", "lr": rng.random(), "tied": True}
    return Trace(schedule, tuple(bounds), tuple(events), meta, losses, origins)


def ran(
    schedule: Schedule,
    seconds: Callable[[Action], float],
    *,
    transfer_s: float = 0.0,
    noise: float = 0.0,
    overhead_ns: int = 0,
    seed: int = 0,
    num_tokens: int = 32,
) -> Trace:
    """A trace that a run could have left, up to the noise of each action's duration: ranks wait
    for what they need, and do something between any two actions."""
    rng = random.Random(seed)
    taken = {
        action: round(seconds(action) * 1e9 * (1 + noise * rng.random()))
        for program in schedule.programs
        for action in program
    }
    timeline = simulate(
        schedule,
        lambda action: taken[action] + overhead_ns,
        transfer=lambda _: round(transfer_s * 1e9),
    )
    events, origins = [], {}
    for rank, spans in enumerate(timeline.spans):
        origins[rank], free, live = Origin("clock", 10**12), 0, 0
        for action, start, end in spans:
            start, end = int(start), int(end)
            if start > free:
                receive = receive_before(schedule, action)
                events.append(TraceEvent(rank, receive, free, start, 0, live))
            live += {Kind.FORWARD: 1000, Kind.BACKWARD: -600, Kind.WEIGHT: -400}.get(
                action.kind, -1000
            )
            begun, free = start + overhead_ns, end
            events.append(TraceEvent(rank, action, begun, end, end - begun, live))
    cut = tuple(
        tuple(num_tokens * piece // count for piece in range(count + 1))
        for count in schedule.num_slices
    )
    events.sort(key=lambda event: (event.start_ns, event.rank))
    return Trace(schedule, cut, tuple(events), {"step": 0, "device": "made up"}, (), origins)


def receive_before(schedule: Schedule, action: Action) -> Action:
    """A receive for which an action may have waited."""
    forward = action.kind is Kind.FORWARD
    near = schedule.sources(action.stage) if forward else schedule.targets(action.stage)
    kind = Kind.RECEIVE_FORWARD if forward else Kind.RECEIVE_BACKWARD
    return action.on(kind, near[-1])


class Maker(NamedTuple):
    """A trace yet to be made: beartype draws from ``random``, which no strategy may do."""

    num_ranks: int
    num_slices: tuple[int, ...]
    seed: int

    def __call__(self) -> Trace:
        return made_up(chain(self.num_ranks, self.num_slices), self.seed)


def makers(max_ranks: int = 3) -> st.SearchStrategy[Maker]:
    num_slices = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)
    return st.builds(Maker, st.integers(1, max_ranks), num_slices, st.integers(0, 2**32))
