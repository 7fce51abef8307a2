"""``LiveGroups``: the groups that are there, and where their replicas answer."""

import itertools

from recipes.place.fleet.action import Action, Devices, Load, Replace, Start, Unload
from recipes.place.fleet.capacity import Capacity
from recipes.place.fleet.live_group import LiveGroup, LiveReplica
from recipes.place.fleet.router import Router


class LiveGroups:
    """Groups and replicas as they come and go, each with its seat at the router.

    by_devices: all of them.

    **Invariants**

    1. A device is in one group at most.
    2. Seats that are open are those of the replicas that are ready.
    """

    def __init__(self, capacity: Capacity, router: Router) -> None:
        self.by_devices: dict[Devices, LiveGroup] = {}
        self._capacity, self._router = capacity, router
        self._numbers = itertools.count()

    def begin(self, action: Action, now_s: float) -> LiveGroup | None:
        """What comes is there from now on, and what goes gets no more requests; None where the
        action has nothing to act on."""
        if isinstance(action, Start):
            name = f"g{next(self._numbers)}"
            group = LiveGroup(name, action.devices, action.configuration, now_s)
            self.by_devices[action.devices] = group
            return group
        group = self.by_devices.get(action.devices)
        if group is None or isinstance(action, Replace):
            return None
        if isinstance(action, Load):
            if group.state != "ready":
                return None
            group.replicas[action.model] = LiveReplica(action.kv_tokens, since_s=now_s)
        elif isinstance(action, Unload):
            if action.model not in group.replicas:
                return None
            self._shut(group, action.model)
        else:
            group.state = "stopping"
            for model in group.replicas:
                self._shut(group, model)
        return group

    def _shut(self, group: LiveGroup, model: str) -> None:
        group.replicas[model].state = "unloading"
        self._router.shut(group.devices, model)

    def loaded(
        self,
        group: LiveGroup,
        action: Load,
        now_s: float,
        *,
        kv_tokens: int | None,
        max_model_len: int,
        weight_bytes: int | None,
    ) -> float:
        """A replica answers from now on; seconds that its load took."""
        replica = group.replicas[action.model]
        took_s, replica.since_s = now_s - replica.since_s, now_s
        replica.state, replica.weight_bytes = "ready", weight_bytes
        self._router.open(
            action.devices,
            action.model,
            self._capacity.profiles[action.model].find(group.configuration),
            kv_tokens=action.kv_tokens if kv_tokens is None else kv_tokens,
            max_model_len=max_model_len,
            now_s=now_s,
        )
        return took_s

    def drop(self, group: LiveGroup, model: str) -> list[str]:
        """A replica is gone; ids of requests that it had."""
        del group.replicas[model]
        return self._router.drop(group.devices, model)

    def remove(self, group: LiveGroup) -> list[str]:
        """A group is gone; ids of requests that it had."""
        del self.by_devices[group.devices]
        return [left for m in group.replicas for left in self._router.drop(group.devices, m)]
