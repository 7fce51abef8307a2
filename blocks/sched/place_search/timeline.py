"""``Timeline``: placements that follow one another, and what serving over them attains."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from blocks._checks import check
from blocks.sched.cluster_sim import Event, Outcome, simulate
from blocks.sched.place_search.switch import PCIE_BYTES_PER_S, Switch, switch
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Profile
from blocks.sched.workload import Workload


@dataclasses.dataclass(frozen=True)
class Timeline:
    """Placements and the moments from which they hold.

    first: the placement at the start, loaded before it.
    changes: later moments in seconds, rising, and how the placement changes there.
    """

    first: Placement
    changes: tuple[tuple[float, Switch], ...] = ()

    @classmethod
    def of(
        cls,
        placements: Sequence[Placement],
        every_s: float | int,
        profiles: Mapping[str, Profile],
        bytes_per_s: float | int = PCIE_BYTES_PER_S,
    ) -> "Timeline":
        """One placement for each ``every_s`` seconds; equal neighbours make no change."""
        check(bool(placements), "placements", "at least one", "none")
        changes, current = [], placements[0]
        for index, placement in enumerate(placements[1:], 1):
            change = switch(current, placement, profiles, bytes_per_s)
            if change.loads or len(change.placement.groups) != len(current.groups):
                changes.append((index * float(every_s), change))
                current = change.placement
        return cls(placements[0], tuple(changes))

    @property
    def num_loads(self) -> int:
        """Replicas loaded after the start."""
        return sum(len(load.loaded) for _, change in self.changes for load in change.loads)

    @property
    def bytes(self) -> int:
        """Copied to all devices together after the start."""
        return sum(change.bytes for _, change in self.changes)

    def as_events(self) -> tuple[Placement, tuple[Event, ...]]:
        """One placement with every group there ever is, each with every model it ever hosts, and
        the events that make it hold them when it does.

        A group whose models change takes no requests from the moment of the change until the new
        ones are loaded, after those of the change before; what it had taken is answered.
        """
        lives = [_Life(group, group.models) for group in self.first.groups]
        now = list(lives)
        for at_s, change in self.changes:
            away_s = {load.group: load.away_s for load in change.loads}
            following = []
            for to, (group, kept) in enumerate(
                zip(change.placement.groups, change.kept, strict=True)
            ):
                if kept < 0:
                    lives.append(_Life(group, ()))
                life = now[kept] if kept >= 0 else lives[-1]
                life.change(at_s, group.models, away_s.get(to, 0.0))
                following.append(life)
            for at, life in enumerate(now):
                if at not in change.kept:
                    life.change(at_s, (), 0.0)
            now = following
        whole = tuple(life.group._replace(models=tuple(life.ever)) for life in lives)
        events = [
            Event(moment_s, kind, index, model)
            for index, life in enumerate(lives)
            for moment_s, kind, model in life.events
        ]
        return Placement(whole), tuple(sorted(events, key=lambda event: event.at_s))

    def serve(self, profiles: Mapping[str, Profile], workload: Workload, **options: Any) -> Outcome:
        """What becomes of the workload; ``options`` are those of ``simulate``."""
        placement, events = self.as_events()
        return simulate(placement, profiles, workload, events=events, **options)


class _Life:
    """One group over time.

    ever: models it hosts at any time.
    events: moment, ``load`` or ``unload``, model.
    """

    def __init__(self, group: Group, models: tuple[str, ...]) -> None:
        self.group = group
        self.models = models
        self.ever = dict.fromkeys(models)
        self.events: list[tuple[float, str, str]] = []
        self.ready_s = 0.0

    def change(self, at_s: float, models: tuple[str, ...], away_s: float) -> None:
        """Other models from ``at_s`` on, or from when they are loaded."""
        late = self.ready_s > at_s  # still loading: what was to come is given up
        self.events = [event for event in self.events if event[0] <= at_s]
        begin_s = max(at_s, self.ready_s) if models else at_s
        for model in self.models:
            if late or away_s or model not in models:
                self.events.append((at_s, "unload", model))
        for model in models:
            if late or away_s or model not in self.models:
                self.events.append((begin_s + away_s, "load", model))
        self.ever.update(dict.fromkeys(models))
        self.ready_s = begin_s + away_s
        self.models = models
