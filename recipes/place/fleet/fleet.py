"""``Fleet``: the groups that are there, and the placement that they should be."""

import collections
from collections.abc import Callable, Collection
from typing import Literal

from blocks.sched.placement import Placement
from recipes.place.fleet._invariants import check_fleet
from recipes.place.fleet.action import Action, Devices, Load, Replace, Start, Stop, Unload
from recipes.place.fleet.backoff import Backoff
from recipes.place.fleet.capacity import Capacity
from recipes.place.fleet.live_group import LiveGroup
from recipes.place.fleet.live_groups import LiveGroups
from recipes.place.fleet.observed import Observed
from recipes.place.fleet.on_demand import OnDemand
from recipes.place.fleet.reconcile import reconcile
from recipes.place.fleet.repair import repair
from recipes.place.fleet.router import Router
from recipes.place.fleet.trouble import Trouble

Tell = Callable[[Literal["good", "bad", "note"], str], None]
STEADY_S = 60.0
"""A group that has lived so long counts as one that works."""


class Fleet:
    """The state of a cluster; decides what to do next, and is told what came of it.

    Does nothing itself: whoever owns it carries out ``steps``, telling of each ``begin`` and then
    ``done``, ``failed`` or ``skip``.

    Args:
        desired: the placement to bring about; may be replaced at any time.
        num_devices: of the cluster, numbered from 0.
        router: is told which replicas answer requests.
        wanted_s: a model that was asked for within so many seconds is kept answering, if possible.
        least_stay_s: see ``OnDemand``.
        max_restarts: starts of a group that may fail in a row before its devices are given up.
        given_up_s: how long they then are left alone.
        tell: is called with what happens.

    **Invariants**

    1. A device is in one group at most.
    2. Replicas of a group, those on their way in or out too, fit into its memory.
    3. Seats that are open are those of the replicas that are ready.
    """

    def __init__(
        self,
        desired: Placement,
        capacity: Capacity,
        num_devices: int,
        router: Router,
        *,
        wanted_s: float = 300.0,
        least_stay_s: float = 0.0,
        max_restarts: int = 3,
        given_up_s: float = 600.0,
        starts: Backoff[Devices] | None = None,
        loads: Backoff[tuple[Devices, str]] | None = None,
        tell: Tell = lambda kind, text: None,
    ) -> None:
        self.desired, self.capacity, self.num_devices = desired, capacity, num_devices
        self.router, self.tell = router, tell
        self._live = LiveGroups(capacity, router)
        self.groups = self._live.by_devices
        self.wants_search = False  # the placement was mended in haste; a search may know better
        self.counts: collections.Counter[str] = collections.Counter()
        self._demand = OnDemand(self, wanted_s=wanted_s, least_stay_s=least_stay_s)
        self._trouble = Trouble(max_restarts, starts, loads, given_up_s=given_up_s)
        self._busy: collections.Counter[int] = collections.Counter()

    # --- what is there, and what to do ----------------------------------------------------------

    def observed(self, now_s: float) -> Observed:
        """The moment as plain data."""
        return Observed(
            tuple(group.observed() for group in self.groups.values()),
            frozenset(+self._busy),
            self._trouble.waiting(now_s),
            frozenset(self.unusable(now_s)),
            frozenset(self._demand.wanted(now_s)),
        )

    @property
    def lost(self) -> frozenset[int]:
        """Devices of nodes that are gone."""
        return frozenset(self._trouble.lost)

    def unusable(self, now_s: float) -> set[int]:
        """Devices that are lost or were given up."""
        return self._trouble.unusable(now_s)

    def usable(self, now_s: float) -> list[int]:
        """All others."""
        unusable = self.unusable(now_s)
        return [device for device in range(self.num_devices) if device not in unusable]

    def steps(self, now_s: float) -> tuple[Action, ...]:
        """What to do now; until it is told otherwise, each of the actions counts as under way."""
        self.wants_search |= self._trouble.recover(now_s)
        found = reconcile(self.desired, self.observed(now_s), self.capacity.fits)
        if found and isinstance(found[0], Replace):
            self.desired = repair(self.desired, self.unusable(now_s), self.capacity)
            self.wants_search = True
            self.counts["repairs"] += 1
            self.tell("note", f"{found[0]}: {len(self.desired.groups)} groups go on")
            found = reconcile(self.desired, self.observed(now_s), self.capacity.fits)
        for action in found:
            self._busy.update(action.devices)
        return found

    def next_s(self, now_s: float) -> float:
        """When a wait after a failure is over."""
        return self._trouble.next_s(now_s)

    # --- what comes of it -----------------------------------------------------------------------

    def begin(self, action: Action, now_s: float) -> LiveGroup | None:
        """An action begins; None where its group or a device is gone, and it is to be skipped."""
        gone = isinstance(action, Start) and self.unusable(now_s).intersection(action.devices)
        return None if gone else self._live.begin(action, now_s)

    def done(
        self,
        action: Action,
        now_s: float,
        *,
        kv_tokens: int | None = None,
        max_model_len: int = 1 << 30,
        weight_bytes: int | None = None,
    ) -> list[str]:
        """An action has succeeded; with a load, what was loaded.

        Returns:
            Ids of requests that a replica had not answered before it went.
        """
        self._release(action)
        group = self.groups.get(action.devices)
        if group is None:
            return []
        if isinstance(action, Start):
            group.state = "ready"
            self.counts["starts"] += 1
            self.tell("good", f"group {group.name} is there, {_where(group)}")
        elif isinstance(action, Load):
            took_s = self._live.loaded(
                group,
                action,
                now_s,
                kv_tokens=kv_tokens,
                max_model_len=max_model_len,
                weight_bytes=weight_bytes,
            )
            self._demand.loaded(action.model, took_s)
            self._trouble.loaded(action.devices, action.model)
            self.counts["loads"] += 1
            self.tell("good", f"{action.model} is loaded on group {group.name}")
        elif isinstance(action, Unload):
            self.counts["unloads"] += 1
            self.tell("note", f"{action.model} left group {group.name}")
            return self._live.drop(group, action.model)
        elif isinstance(action, Stop):
            self.tell("note", f"group {group.name} was stopped")
            return self._live.remove(group)
        return []

    def failed(self, action: Action, now_s: float, why: str) -> list[str]:
        """An action has failed; ids of requests that were lost with it."""
        self._release(action)
        group = self.groups.get(action.devices)
        if group is None or isinstance(action, Replace):
            return []
        if isinstance(action, Start | Stop):
            return self.lose(group, now_s, why)
        if action.model not in group.replicas:
            return []
        if isinstance(action, Load):
            num = self._trouble.load_failed(action.devices, action.model, now_s, why)
            self.counts["failed_loads"] += 1
            self.tell("bad", f"{action.model} cannot be loaded on {group.name} ({num}): {why}")
        return self._live.drop(group, action.model)  # not there to unload: as good as unloaded

    def skip(self, action: Action) -> None:
        """An action will not be tried, as one before it has failed."""
        self._release(action)

    def lose(self, group: LiveGroup, now_s: float, why: str) -> list[str]:
        """A group is gone; ids of the requests that it had."""
        if self.groups.get(group.devices) is not group:
            return []
        stopping = group.state == "stopping"
        left = self._live.remove(group)
        if stopping:
            return left
        if group.state == "ready" and now_s - group.since_s > STEADY_S:
            self._trouble.group_works(group.devices)
        num = self._trouble.group_failed(group.devices, now_s)
        self.counts["lost_groups"] += 1
        self.tell("bad", f"group {group.name} is lost, {_where(group)}: {why}")
        if num == 0:
            self.tell("bad", f"{_where(group)} are given up after failures in a row")
        return left

    def lose_devices(self, devices: Collection[int], now_s: float, why: str) -> list[str]:
        """A node is gone; ids of the requests that its groups had."""
        left: list[str] = []
        self._trouble.lose(devices)
        for group in [g for g in self.groups.values() if set(g.devices) & set(devices)]:
            left += self.lose(group, now_s, why)
        return left

    def regain_devices(self, devices: Collection[int]) -> None:
        """A node is back; the next search uses it."""
        self.wants_search |= self._trouble.regain(devices)

    def _release(self, action: Action) -> None:
        self._busy.subtract(action.devices)
        self._busy = +self._busy

    # --- models on demand -----------------------------------------------------------------------

    def ask(self, model: str, now_s: float) -> None:
        """Somebody asks for a model."""
        self._demand.ask(model, now_s)

    def want(self, model: str, now_s: float, *, at_once: bool = False) -> bool:
        """See that a model is loaded somewhere, as soon as can be; False where there is no room.

        Args:
            at_once: replicas make room that were loaded just now, too.
        """
        found = self._demand.placed(model, now_s, at_once=at_once)
        if found is None:
            return False
        if found is not self.desired:
            self.desired = found
            self.tell("note", f"{model} is asked for and will be loaded")
        return True

    def wait_s(self, model: str, now_s: float) -> float | None:
        """See ``OnDemand``."""
        return self._demand.wait_s(model, now_s)

    def why_not(self, model: str) -> str | None:
        """Why the last load of a model failed; None where it did not, or another is under way."""
        if any(model in group.replicas for group in self.groups.values()):
            return None
        return self._trouble.why_not(model)

    def check_invariants(self) -> None:
        """Assert invariants 1 to 3."""
        check_fleet(self)


def _where(group: LiveGroup) -> str:
    return f"devices {','.join(map(str, group.devices))}"
