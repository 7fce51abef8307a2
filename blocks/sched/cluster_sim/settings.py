"""What a simulation takes for granted: overheads, faults, who is asked first."""

from typing import NamedTuple

from blocks._checks import check, fail, is_number

DISPATCH = ("shortest_queue", "least_clock", "earliest_finish")
"""Which of the groups that host a model gets its next request; of equals the first one.

``shortest_queue``: the fewest requests that were taken and are not through yet.
``least_clock``: the smallest time at which the last stage is done with what was taken.
``earliest_finish``: the one that would be through with it first.
"""

KINDS = ("down", "up", "unload", "load", "clock")


class Overheads(NamedTuple):
    """What comes on top of the profile's stage times.

    request_s: seconds from stages to answer that occupy no stage: the front door, the network.
    gap_s: seconds a stage stays taken after each task before it can begin the next one, because
        tasks are handed out by a host: for groups of one stage, of two, and so on; the last number
        holds for longer pipelines.
    per_stage: share by which every stage is slower, for each stage of the group.
    """

    request_s: float = 0.0
    gap_s: tuple[float, ...] = (0.0,)
    per_stage: float = 0.0

    def gap_of(self, num_stages: int) -> float:
        """The gap of a group of so many stages."""
        return self.gap_s[min(num_stages, len(self.gap_s)) - 1]

    def checked(self) -> "Overheads":
        """Itself.

        Raises:
            ValueError: seconds or shares below 0.
        """
        seconds = (self.request_s, self.per_stage, *self.gap_s)
        ok = bool(self.gap_s) and all(is_number(one) and one >= 0 for one in seconds)
        check(ok, "overheads", "seconds and shares of 0 or more", self)
        return self


ALPASERVE_FAST = Overheads(request_s=0.011, per_stage=0.009)
"""The fixed overheads of the quick simulator of Li et al., AlpaServe, 2023."""


class Event(NamedTuple):
    """Something that happens to the cluster.

    at_s: when; of events of one moment the earlier in the list comes first, and all of them come
        before requests of that moment.
    kind: ``down``: the group stops at once; what it had not finished is asked again elsewhere.
        ``up``: it works again, with empty stages. ``unload``: no more requests of the model are
        sent there, those taken are answered; ``load``: they are sent again. ``clock``: the clock by
        which the group's work is estimated jumps by ``seconds``, so that estimates are off by as
        much until the work taken before is through.
    group: index of the group; -1 for all.
    model: name, for ``load`` and ``unload``; empty for all models of the group.
    seconds: of the jump; above 0 makes work seem longer.

    A group whose first event is ``up`` is down before it, and a model whose first event in a group
    is ``load`` is not there before it.
    """

    at_s: float
    kind: str
    group: int
    model: str = ""
    seconds: float = 0.0


def check_events(events: tuple[Event, ...], num_groups: int) -> None:
    """
    Raises:
        ValueError: an event that cannot be.
    """
    for event in events:
        check(event.kind in KINDS, "event", f"one of {KINDS}", event)
        check(0 <= event.at_s < float("inf"), "event", "a moment from 0 on", event)
        check(-1 <= event.group < num_groups, "event", f"one of {num_groups} groups, or -1", event)
        if event.model and event.kind not in ("load", "unload"):
            raise fail("event", "a model only to load or unload", event)
        if (event.kind == "clock") != (event.seconds != 0):
            raise fail("event", "seconds for a clock that jumps, and for no other", event)
