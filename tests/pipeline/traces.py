"""Traces made up for tests: every rank does its program with pauses between the actions."""

import random
from typing import NamedTuple

from hypothesis import strategies as st

from blocks.pipeline import Action, Kind, Origin, Schedule, Trace, TraceEvent


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
