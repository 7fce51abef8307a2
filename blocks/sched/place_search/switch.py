"""What it takes to go from one placement to another."""

from collections.abc import Mapping
from typing import NamedTuple

from blocks._checks import check_positive
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Profile

PCIE_BYTES_PER_S = 12e9
"""What a device copies from its host's memory over PCIe 3.0 x16, about."""


class Load(NamedTuple):
    """One group that changes.

    group: its index in the new placement.
    loaded, unloaded: models; where devices are regrouped or run otherwise, all of the group's are
        loaded.
    bytes: copied to the fullest device.
    away_s: seconds during which the group takes no requests: its new models are copied one after
        another, each by all devices at once.
    """

    group: int
    loaded: tuple[str, ...]
    unloaded: tuple[str, ...]
    bytes: int
    away_s: float


class Switch(NamedTuple):
    """A change of placement.

    placement: the new one, with devices dealt so that most bytes stay.
    kept: for each of its groups the index of the old one that it continues; -1 where it is new.
    loads: of the groups that change.
    """

    placement: Placement
    kept: tuple[int, ...]
    loads: tuple[Load, ...]

    @property
    def bytes(self) -> int:
        """Copied to all devices together, at most."""
        groups = self.placement.groups
        return sum(load.bytes * len(groups[load.group].devices) for load in self.loads)

    @property
    def away_device_s(self) -> float:
        """Device seconds lost."""
        groups = self.placement.groups
        return float(sum(load.away_s * len(groups[load.group].devices) for load in self.loads))


def switch(
    old: Placement,
    new: Placement,
    profiles: Mapping[str, Profile],
    bytes_per_s: float | int = PCIE_BYTES_PER_S,
) -> Switch:
    """How to go from ``old`` to ``new``.

    A group is continued by one of the same configuration, pairs that keep most bytes first; what
    both host stays. All other groups start from empty devices.

    Args:
        bytes_per_s: to each device; infinite for a switch that takes no time.
    """
    check_positive("bytes_per_s", bytes_per_s)
    pairs = sorted(
        (-_kept_bytes(one, two, profiles), at, to)
        for at, one in enumerate(old.groups)
        for to, two in enumerate(new.groups)
        if one.configuration == two.configuration
    )
    source: dict[int, int] = {}
    for _, at, to in pairs:
        if to not in source and at not in source.values():
            source[to] = at
    groups = _with_devices(old, new, source)
    loads = []
    for to, group in enumerate(groups):
        before = old.groups[source[to]].models if to in source else ()
        loaded = tuple(model for model in group.models if model not in before)
        unloaded = tuple(model for model in before if model not in group.models)
        if loaded or unloaded:
            size = sum(_bytes(group, model, profiles) for model in loaded)
            loads.append(Load(to, loaded, unloaded, size, size / bytes_per_s))
    kept = tuple(source.get(to, -1) for to in range(len(groups)))
    return Switch(Placement(groups), kept, tuple(loads))


def _with_devices(old: Placement, new: Placement, source: dict[int, int]) -> tuple[Group, ...]:
    """The new groups, continued ones on the devices they have, the others on what is left."""
    devices = dict.fromkeys(
        device for placement in (old, new) for group in placement.groups for device in group.devices
    )
    taken = {device for at in source.values() for device in old.groups[at].devices}
    free = sorted(device for device in devices if device not in taken)
    groups = []
    for to, group in enumerate(new.groups):
        if to in source:
            groups.append(group._replace(devices=old.groups[source[to]].devices))
        else:
            count = len(group.devices)
            groups.append(group._replace(devices=tuple(free[:count])))
            free = free[count:]
    return tuple(groups)


def _bytes(group: Group, model: str, profiles: Mapping[str, Profile]) -> int:
    return max(profiles[model].timing(group.configuration).weight_bytes)


def _kept_bytes(one: Group, two: Group, profiles: Mapping[str, Profile]) -> int:
    return sum(_bytes(two, model, profiles) for model in two.models if model in one.models)
