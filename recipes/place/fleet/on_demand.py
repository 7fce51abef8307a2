"""``OnDemand``: where a fleet puts a model that somebody asks for, and when."""

from typing import TYPE_CHECKING

from blocks.sched.placement import Placement
from recipes.place.fleet.admit import admit
from recipes.place.fleet.seat import Seat

if TYPE_CHECKING:
    from recipes.place.fleet.fleet import Fleet


class OnDemand:
    """Which models are asked for, and which replicas make room for them.

    Replicas without requests make room, those that were used longest ago first, but none within
    ``least_stay_s`` seconds of its load. So models that are asked for in turns, with room for one
    of them, are loaded in turns at most that often, and answer requests in between.

    Args:
        wanted_s: a model counts as asked for so many seconds.
    """

    def __init__(self, fleet: "Fleet", *, wanted_s: float, least_stay_s: float) -> None:
        self._fleet, self._wanted_s, self._least_stay_s = fleet, wanted_s, least_stay_s
        self._asked_s: dict[str, float] = {}
        self._load_s: dict[str, float] = {}

    def ask(self, model: str, now_s: float) -> None:
        """Somebody asks for a model."""
        self._asked_s[model] = now_s

    def loaded(self, model: str, seconds: float) -> None:
        """A load of a model has taken so long."""
        self._load_s[model] = max(0.0, seconds)

    def wanted(self, now_s: float) -> set[str]:
        """Models that were asked for lately or are at work."""
        live = {seat.model for seat in self._fleet.router.seats() if seat.live}
        return live | {m for m, at_s in self._asked_s.items() if now_s - at_s < self._wanted_s}

    def placed(self, model: str, now_s: float, *, at_once: bool = False) -> Placement | None:
        """The desired placement, with the model; itself where it has it on devices that can be
        used; None where there is no room.

        Args:
            at_once: replicas make room that were loaded just now, too.
        """
        fleet = self._fleet
        unusable = fleet.unusable(now_s)
        hosts = [fleet.desired.groups[at] for at in fleet.desired.groups_of(model)]
        if any(not unusable & set(group.devices) for group in hosts):
            return fleet.desired
        return self._admitted(model, now_s, self._least_stay_s if at_once else 0.0)

    def wait_s(self, model: str, now_s: float) -> float | None:
        """Seconds until a model for which there is no room may be loaded, in place of replicas
        that idle but were loaded a moment ago: until they may go, and what its last load took.
        None where it has nothing to wait for.
        """
        stays = {self._stays_s(seat, now_s) for seat in self._idle()}
        for stay_s in sorted(stays - {0.0}):
            if self._admitted(model, now_s, stay_s) is not None:
                return stay_s + self._load_s.get(model, 0.0)
        return None

    def _admitted(self, model: str, now_s: float, most_s: float) -> Placement | None:
        """With the model in place of replicas that have to stay for ``most_s`` seconds at most."""
        fleet = self._fleet
        taken = {device for group in fleet.desired.groups for device in group.devices}
        idle = [seat for seat in self._idle() if self._stays_s(seat, now_s) <= most_s]
        return admit(
            fleet.desired,
            model,
            fleet.capacity,
            free=[device for device in fleet.usable(now_s) if device not in taken],
            idle=[(seat.devices, seat.model) for seat in idle],
        )

    def _idle(self) -> list[Seat]:
        """Replicas without requests, longest unused first."""
        idle = (seat for seat in self._fleet.router.seats() if not seat.live)
        return sorted(idle, key=lambda seat: seat.used_s)

    def _stays_s(self, seat: Seat, now_s: float) -> float:
        """For how long it must stay; a clock that was set back ends that."""
        group = self._fleet.groups.get(seat.devices)
        replica = None if group is None else group.replicas.get(seat.model)
        if replica is None:
            return 0.0
        passed_s = now_s - replica.since_s
        return self._least_stay_s - passed_s if 0 <= passed_s < self._least_stay_s else 0.0
