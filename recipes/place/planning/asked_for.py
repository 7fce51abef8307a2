"""``asked_for``: a task in one line."""

from pathlib import Path

from recipes.place.config import PlaceConfig
from recipes.place.planning.task import PlaceTask


def asked_for(task: PlaceTask) -> str:
    """One line: models, devices, traffic."""
    config, workload = task.config, task.workload
    cluster = config.cluster
    nodes = f" on {cluster.num_nodes} nodes" if cluster.num_nodes > 1 else ""
    devices = _count(task.num_devices, f"{cluster.device} device")
    return (
        f"{_count(len(workload.models), 'model')}, {devices}{nodes} of {cluster.memory}; "
        f"{workload.num_requests:,} requests in {workload.duration_s:.4g} s ({_source(config)})"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _source(config: PlaceConfig) -> str:
    traffic = config.traffic
    if traffic.trace is not None:
        return Path(traffic.trace).name
    return f"drawn, CV {traffic.cv:g}"
