"""``RayGroup``: a group whose processes are actors of one placement group; a ``GroupProcess``."""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

from recipes.place.group import GroupSpec
from recipes.place.ray.bundles import Bundles
from recipes.place.ray.group_actor import GroupActor
from recipes.place.ray.library import ray_library
from recipes.place.ray.log_file import last_lines
from recipes.place.ray.outcome import exit_code_of
from recipes.place.ray.ranks import SHARE
from recipes.serve.parallel.start import UNKNOWN

log = logging.getLogger("recipes.place")


class RayGroup:
    """One group on Ray. Starting it returns at once: Ray reserves and starts in the background.

    ``max_restarts`` is 0: Ray would start a process of its own accord, which holds none of the
    models, beside a keeper that has already given the group's models to others; and on the node it
    knows, where the keeper may know better. The keeper restarts, by one plan for all groups.

    Args:
        bundles: what to reserve.
        is_there: whether a node still is.
        rank_host: see ``GroupActor.run``.
    """

    def __init__(
        self,
        spec: GroupSpec,
        bundles: Bundles,
        is_there: Callable[[str], bool],
        rank_host: str | None,
    ) -> None:
        self._ray = ray = ray_library()
        self._group, self._nodes, self._is_there = spec.group, bundles.nodes, is_there
        self._ended: tuple[int, str] | None = None
        self._reserved = reserve(bundles)
        strategy = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        actor = ray.remote(GroupActor).options(
            num_cpus=0,  # the bundles are the reservation; what runs in them shares them
            num_gpus=SHARE if spec.device == "cuda" else 0,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=strategy(self._reserved, 0),
        )
        self._actor = actor.remote()
        self._where = self._actor.where.remote()
        # Not an argument of the actor's constructor, which Ray keeps and shows: it holds the key.
        self._run = self._actor.run.remote(spec.to_json(), rank_host)

    def exit_code(self) -> int | None:
        """None while it runs, or is still to be started; see ``exit_code_of``."""
        if self._ended is None:
            ended, _ = self._ray.wait([self._run], timeout=0)
            if ended:
                self._end(*exit_code_of(self._run))
            elif gone := [node for node in self._nodes if not self._is_there(node)]:
                self._end(UNKNOWN, f"node {gone[0][:8]} is lost")
        return None if self._ended is None else self._ended[0]

    @property
    def why(self) -> str:
        """How it has ended, for people; empty while it runs."""
        return "" if self.exit_code() is None or self._ended is None else self._ended[1]

    def kill(self) -> None:
        """End its processes and give back what was reserved, without waiting for either."""
        self._end(UNKNOWN, "it was told to end")

    def pid(self, timeout_s: float = 60.0) -> int:
        """Of the group's process, on its node; waits until it is there.

        Raises:
            TimeoutError, RuntimeError: it does not come, or has gone.
        """
        return self._place(timeout_s)[1]

    def log(self, num_lines: int = 100, timeout_s: float = 30.0) -> str:
        """The end of what the group's process has written, from its node; after its end too.

        Raises:
            TimeoutError, RuntimeError: the node is gone, or the process never came.
        """
        node, pid, folder = self._place(timeout_s)
        ray = self._ray
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        read = ray.remote(last_lines).options(
            num_cpus=0, max_retries=0, scheduling_strategy=strategy(node, soft=False)
        )
        return ray.get(read.remote(folder, pid, num_lines), timeout=timeout_s)

    def _place(self, timeout_s: float) -> tuple[str, int, str]:
        return self._ray.get(self._where, timeout=timeout_s)

    def _end(self, code: int, why: str) -> None:
        if self._ended is not None:
            return
        self._ended = (code, why)
        log.info("group %s on Ray: %s", self._group, why)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(self._actor)
        self._ray.util.remove_placement_group(self._reserved)  # and with it the actors of ranks


def reserve(bundles: Bundles) -> Any:
    """A placement group of Ray; what is not free now is waited for in the background."""
    return ray_library().util.placement_group(
        [dict(bundle) for bundle in bundles.resources],
        strategy=bundles.strategy,
        bundle_label_selector=list(bundles.labels),
    )


class NeverStarted:
    """A group that could not be started: its devices lie on no node."""

    def __init__(self, why: str) -> None:
        self.why = why

    def exit_code(self) -> int:
        return UNKNOWN

    def kill(self) -> None:
        """There is nothing to end."""
