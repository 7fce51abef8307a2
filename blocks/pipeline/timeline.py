"""``Timeline``: when every action of a schedule ran, or would. Needs no torch."""

import dataclasses
import functools
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple, TypeAlias

from blocks.pipeline.action import Action, Kind
from blocks.pipeline.schedule import Schedule

Number: TypeAlias = int | float | Fraction


class Span(NamedTuple):
    """An action and when it ran, in the unit of the durations it was simulated with."""

    action: Action
    start: Number
    end: Number


@dataclasses.dataclass(frozen=True)
class Timeline:
    """When every action ran.

    spans: for every rank its actions in order; sends and receives are points.
    transfer: as given to ``simulate``; the critical path asks it.
    """

    schedule: Schedule
    spans: tuple[tuple[Span, ...], ...]
    transfer: Callable[[Action], Number] | None = dataclasses.field(default=None, compare=False)

    @functools.cached_property
    def makespan(self) -> Number:
        """From 0 to the end of the last action."""
        return max((spans[-1].end for spans in self.spans if spans), default=0)

    @functools.cached_property
    def _busy(self) -> tuple[Number, ...]:
        return tuple(sum(end - start for _, start, end in spans) for spans in self.spans)

    def busy(self, rank: int) -> Number:
        """Time ``rank`` computes."""
        return self._busy[rank]

    def idle(self, rank: int) -> Number:
        """Time ``rank`` does not compute, from 0 to the makespan."""
        return self.makespan - self._busy[rank]

    def stalled(self, rank: int) -> Number:
        """Time ``rank`` does not compute between its own first and last action."""
        spans = self.spans[rank]
        return spans[-1].end - spans[0].start - self._busy[rank] if spans else 0

    @functools.cached_property
    def bubble(self) -> Number:
        """idle / (idle + busy) over all ranks; a fraction where all times are exact."""
        whole = self.makespan * len(self.spans)
        idle = whole - sum(self._busy)
        if not whole:
            return 0
        if isinstance(idle, float) or isinstance(whole, float):
            return idle / whole
        return Fraction(idle, whole)

    def critical_path(self) -> tuple[Span, ...]:
        """Compute actions from the first to the last, each the one that kept the next waiting.

        On a simulated timeline every one starts when the one before it ends, plus the transfer
        where the rank changes, so their times and the transfers add up to the makespan.
        """
        done = {span.action: (rank, index) for rank, index, span in self._compute()}
        last: tuple[int, int] | None = max(
            done.values(), key=lambda at: self.spans[at[0]][at[1]].end, default=None
        )
        path: list[Span] = []
        while last is not None:
            path.append(self.spans[last[0]][last[1]])
            last = self._held_up_by(last, done)
        return tuple(reversed(path))

    def _compute(self) -> list[tuple[int, int, Span]]:
        return [
            (rank, index, span)
            for rank, spans in enumerate(self.spans)
            for index, span in enumerate(spans)
            if span.action.kind.computes
        ]

    def _held_up_by(
        self, at: tuple[int, int], done: dict[Action, tuple[int, int]]
    ) -> tuple[int, int] | None:
        """Where the action is after which the one at ``at`` could start; None at time 0."""
        rank, index = at
        action, start, _ = self.spans[rank][index]
        if start <= 0:
            return None
        found: list[tuple[Number, tuple[int, int]]] = []
        for before in range(index - 1, -1, -1):
            if self.spans[rank][before].action.kind.computes:
                found.append((self.spans[rank][before].end, (rank, before)))
                break
        forward = action.kind is Kind.FORWARD
        kind = Kind.RECEIVE_FORWARD if forward else Kind.RECEIVE_BACKWARD
        for needed in self.schedule.needs(action):
            where = done.get(needed) or done.get(needed.on(Kind.FULL_BACKWARD))
            if where is not None and where[0] != rank:
                ready = self.spans[where[0]][where[1]].end
                if self.transfer is not None:
                    ready = ready + self.transfer(action.on(kind, needed.stage))
                found.append((ready, where))
        return max(found, key=lambda item: item[0])[1] if found else None
