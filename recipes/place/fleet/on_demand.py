"""Where a fleet puts a model that somebody asks for."""

from typing import TYPE_CHECKING

from blocks.sched.placement import Placement
from recipes.place.fleet.admit import admit

if TYPE_CHECKING:
    from recipes.place.fleet.fleet import Fleet


def with_model(fleet: "Fleet", model: str, now_s: float) -> Placement | None:
    """The desired placement, with the model; itself where it has it on devices that can be used.

    Replicas without requests make room if need be, those that were used longest ago first. None
    where there is no room.
    """
    unusable = fleet.unusable(now_s)
    hosts = [fleet.desired.groups[at] for at in fleet.desired.groups_of(model)]
    if any(not unusable & set(group.devices) for group in hosts):
        return fleet.desired
    taken = {device for group in fleet.desired.groups for device in group.devices}
    idle = sorted(
        (seat for seat in fleet.router.seats() if not seat.live), key=lambda seat: seat.used_s
    )
    return admit(
        fleet.desired,
        model,
        fleet.capacity,
        free=[device for device in fleet.usable(now_s) if device not in taken],
        idle=[(seat.devices, seat.model) for seat in idle],
    )
