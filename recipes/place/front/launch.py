"""How the groups of a placement are started: on processes of this machine, or on Ray's nodes."""

import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator, Callable, Collection

from recipes.place.config import PlaceConfig
from recipes.place.fleet.live_group import LiveGroup
from recipes.place.group import GroupHandle, GroupSpec, Listener, StartGroup, exec_group
from recipes.place.group_spec import group_spec


def this_machine(device: int = 0) -> str:
    """Its name, whatever the device.

    >>> this_machine() != ""
    True
    """
    return socket.gethostname() or "local"


@dataclasses.dataclass
class Launcher:
    """Where groups come to life.

    start_group: starts a group's process. host: where groups must be able to call; None for this
        machine alone. lost_devices: of nodes that are gone. close: lets go of the cluster.
    node_of: the name of the machine that a device lies on.
    """

    start_group: StartGroup = exec_group
    host: str | None = None
    lost_devices: Callable[[], Collection[int]] = tuple
    close: Callable[[], object] = lambda: None
    node_of: Callable[[int], str] = this_machine


def launcher_of(config: PlaceConfig, ray_address: str | None = None) -> Launcher:
    """
    Args:
        ray_address: of a cluster that runs; None starts one here.

    Raises:
        ValueError: Ray is asked for and is not there, or has too few devices.
    """
    nodes = config.cluster
    if config.serving.launcher == "local" and nodes.num_nodes == 1:
        return Launcher()
    if config.serving.launcher == "local":  # as many nodes as are planned for, all of them here
        each = nodes.devices_per_node
        return Launcher(node_of=lambda device: f"{this_machine()} (node {device // each})")
    from recipes.place.ray import RayCluster

    cluster = RayCluster(
        ray_address, num_devices=config.cluster.num_devices, device=config.cluster.device
    )
    return Launcher(
        cluster.start_group,
        cluster.host,
        lambda: cluster.lost_devices,
        cluster.close,
        cluster.node_of,
    )


def spec_of(config: PlaceConfig, group: LiveGroup) -> GroupSpec:
    """What the group's process must know; the listener fills in where to call."""
    return dataclasses.replace(
        group_spec(config, group.name),
        devices=group.devices,
        tp=group.configuration.op,
        pp=group.configuration.pp,
        memory_bytes=config.cluster.memory_bytes,
        heartbeat_s=config.serving.heartbeat_s,
    )


class Launchpad:
    """Starts groups on a listener that is open while it runs."""

    def __init__(self, config: PlaceConfig, launcher: Launcher) -> None:
        self._config, self._launcher = config, launcher
        self._listener: Listener | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Listen for groups; at the end all of them are ended."""
        self._listener = await Listener.open(self._launcher.host)
        try:
            yield
        finally:
            await self._listener.close()

    def start(self, group: LiveGroup) -> GroupHandle:
        """``Launch``"""
        assert self._listener is not None, "expected an open launchpad"
        return self._listener.start(
            spec_of(self._config, group),
            self._launcher.start_group,
            start_timeout_s=self._config.serving.start_s,
        )
