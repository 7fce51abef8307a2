"""``Replanner``: looks at the traffic now and then, and changes the placement where that pays."""

import asyncio
import concurrent.futures
import logging
import multiprocessing
import multiprocessing.connection
import os
import threading

from blocks.sched.cluster_sim.generation import Admission, EngineSettings
from blocks.sched.place_search import Replan
from blocks.sched.workload import Workload
from recipes.place.fleet.backoff import Backoff
from recipes.place.fleet.drift import Traffic
from recipes.place.fleet.keeper import Keeper
from recipes.place.fleet.replan import ReplanTask, replan_generating
from recipes.place.planning.rooms import taken_by

log = logging.getLogger("recipes.place")
LOOK_S = 1.0
"""Between two looks at whether a search is wanted."""


class Replanner:
    """Searches in a process of its own, so that requests do not wait for it.

    Args:
        traffic: of the last minutes.
        planned: traffic to go by where too little was seen; None for none.
        every_s: between two searches; 0 for only those that lost or new devices ask for.
        simulations: of a search, see ``ReplanTask``.
        executor: where searches run; None for a process of its own.
    """

    def __init__(
        self,
        keeper: Keeper,
        traffic: Traffic,
        *,
        settings: EngineSettings,
        slack: float = 1.0,
        bytes_per_s: float = 1e9,
        least_gain: float = 0.02,
        every_s: float = 60.0,
        devices_per_node: int = 1,
        planned: Workload | None = None,
        simulations: int = 30,
        executor: concurrent.futures.Executor | None = None,
    ) -> None:
        self._keeper, self._traffic, self._planned = keeper, traffic, planned
        self._settings, self._admission = settings, Admission(slack=slack)
        self._bytes_per_s, self._least_gain = bytes_per_s, least_gain
        self._every_s, self._per_node = every_s, devices_per_node
        self._simulations, self._executor = simulations, executor
        self._searching = asyncio.Lock()

    async def run(self) -> None:
        """Until it is cancelled."""
        clock = self._keeper.clock
        last_s = clock()
        failures: Backoff[str] = Backoff(LOOK_S)
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                due = self._every_s > 0 and not 0 <= clock() - last_s < self._every_s
                wanted = self._keeper.fleet.wants_search and not failures.waiting(clock())
                if due or wanted:
                    try:
                        await self.look()
                        failures.clear("search")
                    except Exception:
                        log.exception("a search for a placement failed")
                        failures.fail("search", clock())
                    last_s = clock()
        finally:
            if isinstance(self._executor, concurrent.futures.ProcessPoolExecutor):
                _end(self._executor)

    async def look(self) -> Replan | None:
        """Search now; the placement changes if that pays. None where there is nothing to go by."""
        async with self._searching:
            fleet = self._keeper.fleet
            hasty, fleet.wants_search = fleet.wants_search, False
            task = self._task(0.0 if hasty else self._least_gain)
            if task is None:
                fleet.wants_search |= hasty  # until there is something to go by
                return None
            loop = asyncio.get_running_loop()
            if self._executor is None:
                self._executor = _process()
            try:
                found = await loop.run_in_executor(self._executor, replan_generating, task)
            except Exception as error:
                fleet.wants_search |= hasty
                if isinstance(error, concurrent.futures.BrokenExecutor):  # its process was killed
                    self._executor = None
                raise
            if fleet.desired is not task.current:
                fleet.wants_search |= hasty  # it has changed meanwhile: what was found is of no use
                return found
            if found.switch is not None:
                fleet.desired = found.switch.placement
                fleet.counts["replans"] += 1
                told = f"{found.stay:.1%} of requests in time would become {found.go:.1%}"
                fleet.tell("note", f"a new placement: {told} (simulated)")
                self._keeper.wake()
            return found

    def _task(self, least_gain: float) -> ReplanTask | None:
        fleet = self._keeper.fleet
        now_s = self._keeper.clock()
        forecast = self._traffic.forecast(now_s) or self._planned
        devices = tuple(fleet.usable(now_s))
        if forecast is None or not forecast.num_requests or not devices:
            return None
        capacity = fleet.capacity
        return ReplanTask(
            current=fleet.desired,
            forecast=forecast,
            profiles=dict(capacity.profiles),
            devices=devices,
            devices_per_node=self._per_node,
            memory_bytes=capacity.memory_bytes,
            kv_tokens={
                m: taken_by(room, capacity.block_size) for m, room in capacity.least.items()
            },
            settings=self._settings,
            admission=self._admission,
            bytes_per_s=self._bytes_per_s,
            least_gain=least_gain,
            simulations=self._simulations,
        )


def _process() -> concurrent.futures.ProcessPoolExecutor:
    """One process without torch, behind everything else that runs here."""
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(1, mp_context=context, initializer=_begin)


def _begin() -> None:
    """Of the searching process."""
    os.nice(10)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A service that was killed has told nobody; its queue would be waited at for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _end(executor: concurrent.futures.ProcessPoolExecutor) -> None:
    """At once, whatever it is searching."""
    processes = list((executor._processes or {}).values())
    executor.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
