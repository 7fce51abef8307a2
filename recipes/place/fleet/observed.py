"""What is there of a cluster at one moment: plain data that decisions are made from."""

from typing import NamedTuple

from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration
from recipes.place.fleet.action import Devices


class Hosted(NamedTuple):
    """A replica of a group.

    kv_tokens: its cache's room.
    ready: whether requests are sent to it; not while it is loaded or drained.
    """

    model: str
    kv_tokens: int
    ready: bool = True


class ObservedGroup(NamedTuple):
    """A group that was started and lives."""

    devices: Devices
    configuration: Configuration
    replicas: tuple[Hosted, ...] = ()

    def as_group(self) -> Group:
        """What occupies its devices."""
        models = tuple(replica.model for replica in self.replicas)
        rooms = tuple(replica.kv_tokens for replica in self.replicas)
        return Group(self.devices, self.configuration, models, rooms)


class Observed(NamedTuple):
    """Groups, and what must not be done to them now.

    busy: devices of groups to which something is being done.
    waiting: groups and replicas that failed and are not tried again yet; ``(devices, "")`` for the
        start of a group.
    lost: devices that cannot be used.
    wanted: models that are being asked for.
    """

    groups: tuple[ObservedGroup, ...] = ()
    busy: frozenset[int] = frozenset()
    waiting: frozenset[tuple[Devices, str]] = frozenset()
    lost: frozenset[int] = frozenset()
    wanted: frozenset[str] = frozenset()

    def placement(self) -> Placement:
        """The groups as a placement."""
        return Placement(tuple(group.as_group() for group in self.groups))
