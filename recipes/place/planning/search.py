"""``find_placement``: the search, told to whoever waits for it."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from blocks.sched.place_search import PlacementPlan, Simulated, place
from blocks.sched.placement import Placement
from recipes.place.planning.deal import deal
from recipes.place.planning.infeasible import impossible
from recipes.place.planning.task import PlaceTask

Say = Callable[[str], None]
EFFORT: dict[bool, dict[str, Any]] = {
    True: {"beam_simulations": 100, "local_simulations": 40, "max_shapes": 8},
    False: {},
}
"""Of the search, where models generate and where they do not: a simulation of text takes longer."""
QUICK: dict[str, Any] = {"beam_simulations": 0, "local_simulations": 0, "max_shapes": 0}


class Watched:
    """Simulates placements with the rooms they will have, and says every ``every_s`` seconds how
    far the search has come."""

    def __init__(
        self,
        task: PlaceTask,
        say: Say,
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task, self._simulator, self._say = task, task.simulator(), say
        self.batching = getattr(self._simulator, "batching", True)
        self._every_s, self._clock = every_s, clock
        self._began_s = self._told_s = clock()
        self._count, self._best = 0, 0.0

    def run(self, placement: Placement) -> Simulated:
        """Serve the workload."""
        outcome = self._simulator.run(self._task.roomed(placement))
        self._count += 1
        self._best = max(self._best, float(outcome.attainment))
        now_s = self._clock()
        if now_s - self._told_s >= self._every_s:
            self._told_s = now_s
            passed_s = now_s - self._began_s
            self._say(f"  {passed_s:.0f} s: {self._count} simulated, best {self._best:.2%}")
        return outcome


def find_placement(task: PlaceTask, say: Say = lambda line: None, **effort: Any) -> PlacementPlan:
    """The best placement found for a task, its groups within nodes where they can be.

    Args:
        effort: of ``place``, instead of ``EFFORT``.

    Raises:
        ValueError: a model that fits nowhere, or a limit that cannot be met, and by how much.
    """
    problems = impossible(task)
    if problems:
        told = "".join(f"\n  {problem.kind}: {problem.text}" for problem in problems)
        raise ValueError(f"this cannot be placed, whatever else is on the cluster:{told}")
    found = place(
        task.workload,
        task.profiles,
        task.num_devices,
        task.memory_bytes,
        simulator=Watched(task, say),
        kv_tokens=task.kv_tokens,
        tell=say,
        **(effort or EFFORT[task.generates]),
    )
    devices = range(task.num_devices)
    dealt = deal(task.roomed(found.placement), devices, task.config.cluster.devices_per_node)
    return dataclasses.replace(found, placement=dealt)
