"""``RayRanks``: the ranks of a model as actors, a bundle each, in the group's placement group."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

from recipes.place.ray.library import ray_library
from recipes.place.ray.outcome import exit_code_of
from recipes.place.ray.rank_actor import RankActor
from recipes.serve.parallel import RankSpec, Start

SHARE = 0.001
"""Of a bundle's GPU: the bundle is the reservation; ranks of all models hosted share it."""


class RayRanks:
    """Ranks that are actors; a ``Ranks`` as ``recipes.serve.parallel`` asks for.

    ``max_restarts`` is 0: a restarted rank would have neither its weights nor its place in the
    collective. The engine starts all ranks of a model anew, or none.

    Args:
        placement_group: of Ray, with a bundle for every rank.
        specs: of all ranks.
    """

    def __init__(self, placement_group: Any, specs: Sequence[RankSpec]) -> None:
        self._ray = ray = ray_library()
        self._codes: dict[int, int] = {}
        self._actors: dict[int, Any] = {}
        self._runs: dict[int, Any] = {}
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        for spec in specs:
            actor = ray.remote(RankActor).options(
                num_cpus=0,
                num_gpus=SHARE if spec.device == "cuda" else 0,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=strategy(placement_group, spec.rank),
            )
            self._actors[spec.rank] = actor.remote()
            # Ray shows a process the GPU of its bundle alone, which is number 0 there
            own = dataclasses.replace(spec, device_index=0)
            self._runs[spec.rank] = self._actors[spec.rank].run.remote(own.to_json())

    @staticmethod
    def starter(placement_group: Any) -> Start:
        """A ``Start`` whose ranks are in a placement group."""
        return functools.partial(RayRanks, placement_group)

    def exits(self) -> dict[int, int]:
        waiting = {run: rank for rank, run in self._runs.items() if rank not in self._codes}
        if waiting:
            ended, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=0)
            for run in ended:
                self._codes[waiting[run]] = exit_code_of(run)[0]
        return dict(self._codes)

    def end(self) -> None:
        """Kill those that still run, and wait for their end; then the processes of all are gone."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        deadline = time.monotonic() + 10
        while len(self.exits()) < len(self._runs) and time.monotonic() < deadline:
            time.sleep(0.005)
