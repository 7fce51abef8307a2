"""``LiveGroup`` and ``LiveReplica``: what a keeper knows of a group that it has started."""

import dataclasses
from typing import Any, Literal

from blocks.sched.profile import Configuration
from recipes.place.fleet.action import Devices
from recipes.place.fleet.observed import Hosted, ObservedGroup


@dataclasses.dataclass(slots=True)
class LiveReplica:
    """kv_tokens: its cache's room. weight_bytes: on all devices, once it is loaded.

    since_s: when it was loaded; while it is, when that began.
    """

    kv_tokens: int
    state: Literal["loading", "ready", "unloading"] = "loading"
    weight_bytes: int | None = None
    since_s: float = 0.0


@dataclasses.dataclass(slots=True)
class LiveGroup:
    """
    name: unlike that of any other group there ever was.
    handle: what its keeper talks to it through.
    since_s: when it was started.
    """

    name: str
    devices: Devices
    configuration: Configuration
    since_s: float
    state: Literal["starting", "ready", "stopping"] = "starting"
    replicas: dict[str, LiveReplica] = dataclasses.field(default_factory=dict)
    handle: Any = None

    def observed(self) -> ObservedGroup:
        """As plain data."""
        replicas = tuple(
            Hosted(model, replica.kv_tokens, replica.state == "ready")
            for model, replica in self.replicas.items()
        )
        return ObservedGroup(self.devices, self.configuration, replicas)
