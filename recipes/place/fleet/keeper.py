"""``Keeper``: brings about what a fleet should be, on the event loop."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from recipes.place.fleet.action import Action, Devices, Load, Start, Stop, Unload
from recipes.place.fleet.fleet import Fleet
from recipes.place.fleet.live_group import LiveGroup
from recipes.place.fleet.order import waits_for
from recipes.place.group import GroupHandle, GroupLost, LoadFailed, NotHosted, Replica

log = logging.getLogger("recipes.place")
POLL_S = 1.0
"""Between two looks at what tells of itself by nothing else."""

Launch = Callable[[LiveGroup], GroupHandle]
"""Starts the processes of a group and returns at once."""


class Keeper:
    """Carries out the steps of a fleet, those that need not wait for one another side by side,
    and looks again whenever something has changed.

    Args:
        launch: starts a group.
        folders: of the models, where groups can read them.
        start_s: longest start of a group, and longest load of a model.
        drain_s: longest wait for the answers of a replica that is unloaded.
        lost_devices: of nodes that are gone.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        fleet: Fleet,
        launch: Launch,
        folders: Mapping[str, str],
        *,
        start_s: float = 300.0,
        drain_s: float = 60.0,
        lost_devices: Callable[[], Collection[int]] = tuple,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fleet, self.clock = fleet, clock
        self._launch, self._folders = launch, folders
        self._start_s, self._drain_s = start_s, drain_s
        self._lost_devices = lost_devices
        self._tasks: set[asyncio.Task[Any]] = set()
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._changed = asyncio.Event()
        self._over = False

    @property
    def is_alive(self) -> bool:
        """False once it has ended, and with it its groups."""
        return not self._over

    async def run(self) -> None:
        """Until it is cancelled; then the groups are ended."""
        try:
            while True:
                self._wake.clear()
                try:
                    self._look_at_devices()
                    self._round()
                except Exception:  # its groups serve on; the next look may find a way
                    log.exception("looking after the groups failed")
                wait_s = min(POLL_S, max(0.0, self.fleet.next_s(self.clock()) - self.clock()))
                try:
                    async with asyncio.timeout(max(wait_s, 0.01)):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            self._over = True
            await self._end()

    def wake(self) -> None:
        """Something has changed: look again soon, and tell those who wait."""
        self._wake.set()
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self, limit_s: float) -> None:
        """Wait until something has changed, at most ``limit_s`` seconds."""
        try:
            async with asyncio.timeout(limit_s):
                await self._changed.wait()
        except TimeoutError:
            pass

    def notice(self, devices: Devices) -> None:
        """Somebody could not reach the group on these devices."""
        group = self.fleet.groups.get(devices)
        if group is not None and group.handle is not None and group.handle.lost is not None:
            self.fleet.lose(group, self.clock(), group.handle.lost.text)
            self.wake()

    # --- rounds ---------------------------------------------------------------------------------

    def _round(self) -> None:
        hosted = {g.devices: list(g.replicas) for g in self.fleet.groups.values()}
        actions = self.fleet.steps(self.clock())
        tasks: list[asyncio.Task[bool]] = []
        for action, before in zip(actions, waits_for(actions, hosted), strict=True):
            log.info("%s", action)
            waits = [tasks[index] for index in before]
            tasks.append(self._task(self._carry_out(action, waits), str(action)))

    def _look_at_devices(self) -> None:
        """Nodes that went or came since the last look."""
        lost = set(self._lost_devices())
        gone, back = lost - self.fleet.lost, self.fleet.lost - lost
        if gone:
            for group in list(self.fleet.groups.values()):
                if gone.intersection(group.devices) and group.handle is not None:
                    self._task(group.handle.close(0.0), f"close {group.name}")
            self.fleet.lose_devices(gone, self.clock(), "its node is gone")
        if back:
            self.fleet.regain_devices(back)

    def _task(self, work: Any, name: str) -> asyncio.Task[Any]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _carry_out(self, action: Action, waits: Sequence[asyncio.Task[bool]]) -> bool:
        """Do one action after those before it; whether it succeeded."""
        try:
            ready = all([await task for task in waits])
            group = self.fleet.begin(action, self.clock()) if ready else None
            if group is None:
                self.fleet.skip(action)
                return False
            try:
                told = await self._do(action, group)
            except (GroupLost, LoadFailed, NotHosted, TimeoutError, ValueError, OSError) as error:
                why = str(error) or f"not done in {self._start_s:g} s"
                self.fleet.failed(action, self.clock(), why)
                return False
            except Exception as error:
                log.exception("%s failed", action)
                self.fleet.failed(action, self.clock(), repr(error))
                return False
            self.fleet.done(action, self.clock(), **told)
            return True
        finally:
            self.wake()

    async def _do(self, action: Action, group: LiveGroup) -> dict[str, Any]:
        if isinstance(action, Start):
            await self._start(group)
        elif isinstance(action, Load):
            return await self._load(action, group)
        elif isinstance(action, Unload):
            await group.handle.unload(action.model, drain_s=self._drain_s)
        elif isinstance(action, Stop):
            await self._stop(group)
        return {}

    async def _start(self, group: LiveGroup) -> None:
        group.handle = self._launch(group)
        try:
            async with asyncio.timeout(self._start_s):
                await group.handle.ready()
        except BaseException:
            self._task(group.handle.close(0.0), f"close {group.name}")
            raise
        self._watches[group.name] = asyncio.create_task(self._watch(group))

    async def _load(self, action: Load, group: LiveGroup) -> dict[str, Any]:
        timing = self.fleet.capacity.profiles[action.model].find(group.configuration)
        replica = Replica(
            action.model,
            self._folders[action.model],
            max(1, action.kv_tokens),
            0 if timing is None else timing.activation_bytes,
        )
        try:
            async with asyncio.timeout(self._start_s):
                loaded = await group.handle.load(replica)
        except TimeoutError:  # nobody knows what it holds now
            self._task(group.handle.close(0.0), f"close {group.name}")
            raise
        return {
            "kv_tokens": loaded.kv_tokens,
            "max_model_len": loaded.max_model_len,
            "weight_bytes": loaded.weight_bytes,
        }

    async def _stop(self, group: LiveGroup) -> None:
        self._forget(group)
        unloads = [group.handle.unload(m, drain_s=self._drain_s) for m in group.replicas]
        await asyncio.gather(*unloads, return_exceptions=True)
        await group.handle.close()

    async def _watch(self, group: LiveGroup) -> None:
        """Until the group is lost."""
        reason = await group.handle.wait_lost()
        self.fleet.lose(group, self.clock(), reason.text)
        self._watches.pop(group.name, None)
        self.wake()

    def _forget(self, group: LiveGroup) -> None:
        watch = self._watches.pop(group.name, None)
        if watch is not None:
            watch.cancel()

    async def _end(self) -> None:
        """End all groups, and what is under way."""
        groups = list(self.fleet.groups.values())
        for group in groups:
            self._forget(group)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        handles = [group.handle for group in groups if group.handle is not None]
        await asyncio.gather(*(handle.close() for handle in handles), return_exceptions=True)
