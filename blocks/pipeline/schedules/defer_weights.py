"""``defer_weights``: backwards split in two, and the weight gradients put into the bubbles."""

import collections
import dataclasses
import heapq

from blocks._checks import check
from blocks.pipeline.action import Action, Kind
from blocks.pipeline.dependencies import dependencies
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.simulate import Duration
from blocks.pipeline.timeline import Number


def defer_weights(
    schedule: Schedule, duration: Duration, max_kept: int, *, share: Number = 1
) -> Schedule:
    """The programs of ``schedule`` with every full backward split, in the same order, and every
    weight gradient where its rank would otherwise wait.

    All ranks are run in time. One that waits for its next forward or backward computes the oldest
    weight gradient put aside if the wait is long enough for ``share`` of it, and one about to run
    forward while it keeps ``max_kept`` slices computes the oldest first.

    Args:
        schedule: forwards and full backwards.
        duration: time of ``F``, ``B`` and ``W``.
        max_kept: slices of which a rank keeps anything at a time, activations or what a weight
            gradient needs; more only where the order itself keeps more.
        share: 1 never delays another action for a weight gradient, 0 never waits with one at hand.

    Raises:
        ValueError: a schedule with split backwards, or with sends and receives; a negative time.
        Deadlock: one that cannot run.

    >>> from blocks.pipeline.schedules.one_f_one_b import one_f_one_b
    >>> made = defer_weights(one_f_one_b(2, (1, 1)), lambda action: 1, 2)
    >>> made.programs[1]
    (F1(0,0), B1(0,0), F1(1,0), B1(1,0), W1(0,0), W1(1,0))
    """
    for action in dependencies(schedule).actions:
        whole = action.kind in (Kind.FORWARD, Kind.RECOMPUTE, Kind.FULL_BACKWARD)
        check(whole, "schedule", "forwards and full backwards alone", action)
    made = _Defer(schedule, duration, max_kept, share).run()
    return dataclasses.replace(schedule, programs=made)


class _Defer:
    def __init__(
        self, schedule: Schedule, duration: Duration, max_kept: int, share: Number
    ) -> None:
        self.schedule, self.duration = schedule, duration
        self.max_kept, self.share = max_kept, share
        every = range(schedule.num_ranks)
        self.main = [
            [a.on(Kind.BACKWARD) if a.kind is Kind.FULL_BACKWARD else a for a in program]
            for program in schedule.programs
        ]
        self.at = [0 for _ in every]
        self.kept = [0 for _ in every]
        self.aside: list[collections.deque[Action]] = [collections.deque() for _ in every]
        self.programs: list[list[Action]] = [[] for _ in every]
        self.ends: dict[Action, Number] = {}
        self.asleep: dict[Action, list[int]] = {}
        """Ranks with nothing at hand, by the action they wait for."""
        self.events: list[tuple[Number, int]] = [(0, rank) for rank in every]
        """When which rank can do something next."""

    def run(self) -> tuple[tuple[Action, ...], ...]:
        while self.events:
            time, rank = heapq.heappop(self.events)
            self._step(time, rank)
        return tuple(tuple(program) for program in self.programs)

    def _step(self, time: Number, rank: int) -> None:
        aside = self.aside[rank]
        if self.at[rank] == len(self.main[rank]):
            if aside:
                self._do(time, rank, aside.popleft())
            return
        action = self.main[rank][self.at[rank]]
        ready: Number = 0
        for needed in self.schedule.needs(action):
            if needed not in self.ends:
                if aside:  # its producer has not begun, so the wait is long
                    self._do(time, rank, aside.popleft())
                else:
                    self.asleep.setdefault(needed, []).append(rank)
                return
            ready = max(ready, self.ends[needed])
        full = action.kind is Kind.FORWARD and self.kept[rank] >= self.max_kept
        if aside and (full or self._fits(time, ready, aside[0])):
            self._do(time, rank, aside.popleft())
        elif ready > time:
            heapq.heappush(self.events, (ready, rank))
        else:
            self.at[rank] += 1
            self._do(time, rank, action)

    def _fits(self, time: Number, ready: Number, weight: Action) -> bool:
        return ready > time and ready - time >= self.share * self.duration(weight)

    def _do(self, time: Number, rank: int, action: Action) -> None:
        end = time + self.duration(action)
        check(end >= time, f"duration of {action}", "zero or more", end - time)
        self.programs[rank].append(action)
        self.ends[action] = end
        self.kept[rank] += (action.kind is Kind.FORWARD) - (action.kind is Kind.WEIGHT)
        if action.kind is Kind.BACKWARD:
            self.aside[rank].append(action.on(Kind.WEIGHT))
        heapq.heappush(self.events, (end, rank))
        for other in self.asleep.pop(action, ()):
            heapq.heappush(self.events, (time, other))
