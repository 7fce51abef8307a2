"""A Ray cluster of several nodes on this machine, on loopback, and its end."""

import contextlib
import importlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from recipes.place.ray.library import keep_to_this_machine, ray_library


class RayNodes:
    """A head without devices, which the front door joins, and nodes with some."""

    def __init__(self, cluster: Any, folder: Path) -> None:
        self.folder = folder
        self._cluster = cluster
        self._nodes: dict[str, Any] = {}

    @property
    def address(self) -> str:
        return self._cluster.address

    def add(self, num_devices: int, *, num_gpus: int = 0) -> str:
        """A node; its id."""
        node = self._cluster.add_node(
            num_cpus=num_devices, num_gpus=num_gpus, object_store_memory=80 << 20
        )
        self._nodes[node.node_id] = node
        return node.node_id

    def remove(self, node: str) -> None:
        """All of a node's processes are killed, as when a machine goes down."""
        self._cluster.remove_node(self._nodes.pop(node), allow_graceful=False)


@contextlib.contextmanager
def ray_nodes(*num_devices: int) -> Iterator[RayNodes]:
    """A cluster whose nodes have so many devices each. One at a time; nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))  # paths of sockets must be short
    (folder / "ray").mkdir()
    keep_to_this_machine()
    before = os.environ.get("RAY_TMPDIR")
    os.environ["RAY_TMPDIR"] = str(folder)  # where Ray notes the running cluster, for ``auto``
    try:
        ray = ray_library()
        made = importlib.import_module("ray.cluster_utils")
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(folder / "ray")}
        cluster = made.Cluster(True, head_node_args={**head, "object_store_memory": 80 << 20})
        try:
            nodes = RayNodes(cluster, folder)
            for count in num_devices:
                nodes.add(count)
            yield nodes
        finally:
            ray.shutdown()
            cluster.shutdown()
    finally:
        if before is None:
            del os.environ["RAY_TMPDIR"]
        else:
            os.environ["RAY_TMPDIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


def processes(title: str) -> list[int]:
    """Of Ray below this process, by what they are."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            running = process.status() != psutil.STATUS_ZOMBIE
            if running and process.cmdline()[:1] and title in process.cmdline()[0]:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
