"""The cluster files that come with the package. Needs no torch."""

import functools
from pathlib import Path

from blocks._checks import check
from blocks.sharding.cluster.cluster import Cluster

FOLDER = Path(__file__).parent / "files"


def bundled_clusters() -> tuple[str, ...]:
    """Their names.

    >>> bundled_clusters()
    ('2xCPU', '8xA100', '8xH100', '8xH200', 'p3.16xlarge')
    """
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


def bundled_cluster(
    name: str, *, num_nodes: int | None = None, num_devices: int | None = None
) -> Cluster:
    """One of them, with as many nodes, and devices in each, as asked for.

    >>> bundled_cluster("p3.16xlarge", num_nodes=8).num_devices
    64

    Raises:
        ValueError: a name that is none of ``bundled_clusters()``.
    """
    hint = "or load a file of your own: Cluster.load(path)"
    check(name in bundled_clusters(), "cluster", f"one of {bundled_clusters()}", repr(name), hint)
    return _loaded(name).resized(num_nodes=num_nodes, num_devices=num_devices)


@functools.cache
def _loaded(name: str) -> Cluster:
    return Cluster.load(FOLDER / f"{name}.json")
