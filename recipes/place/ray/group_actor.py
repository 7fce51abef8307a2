"""What a group's process on Ray runs. A plain class, of which Ray makes an actor."""

import logging
import os
import sys

from recipes.place.group import GroupSpec, run_group
from recipes.place.ray.library import ray_library
from recipes.place.ray.ranks import RayRanks

log = logging.getLogger("recipes.place")


class GroupActor:
    """A process that is one group, in the first bundle of its placement group."""

    def where(self) -> tuple[str, int, str]:
        """Node, process, and the folder of its log."""
        ray = ray_library()
        node = ray.get_runtime_context().get_node_id()
        return node, os.getpid(), ray._private.worker._global_node.get_logs_dir_path()

    def run(self, spec: str, rank_host: str | None) -> int:
        """Be the group that the JSON of a ``GroupSpec`` says; its exit code.

        Args:
            rank_host: see ``run_group``; empty for this node's own address.
        """
        logging.basicConfig(
            format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr
        )
        ray = ray_library()
        host = ray.util.get_node_ip_address() if rank_host == "" else rank_host
        reserved = ray.util.get_current_placement_group()
        try:
            run_group(GroupSpec.from_json(spec), RayRanks.starter(reserved), host=host)
        except BaseException:
            log.exception("a group ends")
            return 1
        return 0
