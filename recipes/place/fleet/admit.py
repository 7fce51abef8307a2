"""A placement with one more model, for a request that asks for one that is loaded nowhere."""

from collections.abc import Collection, Sequence

from blocks.sched.placement import Group, Placement
from recipes.place.fleet.action import Devices
from recipes.place.fleet.capacity import Capacity


def admit(
    placement: Placement,
    model: str,
    capacity: Capacity,
    *,
    free: Collection[int] = (),
    idle: Sequence[tuple[Devices, str]] = (),
) -> Placement | None:
    """A place for a model: in a group that has room, on devices that no group has, or instead of
    replicas that nobody uses.

    Args:
        free: devices that may form a group.
        idle: replicas that may go, those that should go first in front.

    Returns:
        None where there is no room.
    """
    return (
        _beside(placement, model, capacity)
        or _apart(placement, model, capacity, sorted(free))
        or _instead(placement, model, capacity, idle)
    )


def _beside(placement: Placement, model: str, capacity: Capacity) -> Placement | None:
    """In the group with the fewest models that has room."""
    for group in sorted(placement.groups, key=lambda group: len(group.models)):
        more = capacity.with_least(group, model)
        if more is not None:
            return _with(placement, more)
    return None


def _apart(
    placement: Placement, model: str, capacity: Capacity, free: Sequence[int]
) -> Placement | None:
    """In a group of its own, of as few devices as will do."""
    for shape in reversed(capacity.shapes([model], len(free))):
        made = capacity.with_least(Group(tuple(free[: shape.num_devices]), shape), model)
        if made is not None:
            return placement.beside(Placement((made,)))
    return None


def _instead(
    placement: Placement,
    model: str,
    capacity: Capacity,
    idle: Sequence[tuple[Devices, str]],
) -> Placement | None:
    """In the group where the fewest idle replicas must go."""
    found: list[tuple[int, Group]] = []
    for group in placement.groups:
        left, num_gone = group, 0
        for devices, other in idle:
            if devices != group.devices or other not in left.models:
                continue
            left, num_gone = left.without(other), num_gone + 1
            more = capacity.with_least(left, model)
            if more is not None:
                found.append((num_gone, more))
                break
    if not found:
        return None
    return _with(placement, min(found, key=lambda one: one[0])[1])


def _with(placement: Placement, changed: Group) -> Placement:
    return Placement(
        tuple(changed if g.devices == changed.devices else g for g in placement.groups)
    )
