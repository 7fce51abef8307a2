"""``RayCluster``: the machines that a placement is put on, as Ray knows them."""

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Self

from blocks._checks import check
from recipes.place.group import GroupSpec
from recipes.place.ray.bundles import bundles_of
from recipes.place.ray.group import NeverStarted, RayGroup
from recipes.place.ray.library import ray_library, start_here
from recipes.place.ray.seats import Seats
from recipes.serve.own_folder import OwnFolder

log = logging.getLogger("recipes.place")
Lost = Callable[[tuple[int, ...]], object]
"""Told which devices a node has taken with it; called in a thread."""


class RayCluster:
    """Starts groups on the nodes of a Ray cluster, and watches the nodes.

    A device is a GPU, or on the CPU ``cpus_per_device`` processors. Devices are numbered node by
    node, the nodes in the order of their addresses: see ``Seats`` for what becomes of the numbers
    when nodes go and come.

    The process that makes this one is the front door. Ray ends everything that it has started once
    it is gone; and ends this process some time after the head of the cluster is gone, which is why
    the front door had best run on the head.

    Args:
        address: ``auto`` for the cluster that runs on this machine or that ``RAY_ADDRESS`` names,
            ``host:port`` for that of another head; None starts one here, on loopback alone, with
            ``num_devices`` devices.
        num_devices: that are needed; by default whatever the cluster has.
        device: ``cpu`` or ``cuda``.
        watch_s: between two looks at the nodes.
        on_lost: see ``Lost``.

    Raises:
        ValueError: no Ray, no such cluster, or too few devices on it.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        num_devices: int | None = None,
        device: str = "cpu",
        cpus_per_device: float = 1.0,
        watch_s: float = 0.5,
        on_lost: Lost | None = None,
    ) -> None:
        self._device, self._cpus = device, cpus_per_device
        self.on_lost = on_lost
        self._seats = Seats()
        self._groups: list[RayGroup] = []  # that have not ended
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._folder: OwnFolder | None = None  # of a Ray that was started here
        if address is None:
            hint = "say how many devices to start with, or name a cluster"
            check(num_devices is not None, "num_devices", "a number", None, hint)
            self._ray, self._folder = start_here(
                num_devices or 0, device=device, cpus=cpus_per_device
            )
        else:
            self._ray = _join(address)
        try:
            self.refresh()
            there = self._seats.num_devices
            if num_devices is not None:
                hint = f"the nodes have {self.nodes()}"
                check(there >= num_devices, "devices of the cluster", num_devices, there, hint)
        except BaseException:
            self.close()
            raise
        self._watch_s = watch_s
        self._watcher = threading.Thread(target=self._watch, name="nodes of Ray", daemon=True)
        self._watcher.start()

    @property
    def host(self) -> str | None:
        """Where the front door must listen for its groups: this machine's address as other nodes
        know it; None, for a Unix socket, where the whole cluster is on loopback.
        """
        address = self._ray.util.get_node_ip_address()
        return None if ipaddress.ip_address(address).is_loopback else address

    @property
    def seats(self) -> Seats:
        """Which devices lie where, as of the last look."""
        return self._seats

    @property
    def num_devices(self) -> int:
        """Devices that have a number, those of lost nodes included."""
        return self._seats.num_devices

    @property
    def lost_devices(self) -> tuple[int, ...]:
        """Devices whose node is gone, and which no other has replaced."""
        return self._seats.lost

    def nodes(self) -> dict[str, tuple[int, ...]]:
        """The devices of every node, by the node's id, as of the last look."""
        return self._seats.nodes()

    def node_of(self, device: int) -> str:
        """The id of the node that a device lies on; ``lost`` where it lies on none."""
        return self._seats.node_of(device) or "lost"

    def start_group(self, spec: GroupSpec) -> RayGroup | NeverStarted:
        """Start the process of a group, and reserve its devices; a ``StartGroup``.

        A group on one node speaks with its ranks over a Unix socket there; one that spans nodes
        over a port of the first one's address, where they must prove to know the model's key.
        """
        with self._lock:
            seats = self._seats
        try:
            bundles = bundles_of(spec.devices, seats, device=spec.device, cpus=self._cpus)
        except ValueError as error:
            return NeverStarted(str(error))
        spans = len(bundles.nodes) > 1
        group = RayGroup(spec, bundles, self._is_there, "" if spans else None)
        with self._lock:
            self._groups.append(group)
        return group

    def refresh(self) -> None:
        """Look at the nodes now.

        Ray calls a machine dead that has missed some seconds of heartbeats. A node whose raylet
        refuses connections is dead before that. A group with a device on a lost node is ended:
        without that rank it can serve nobody, and what is left of it holds devices.
        """
        nodes = sorted(
            (node for node in self._ray.nodes() if node["Alive"] and not _refuses(node)),
            key=lambda node: (_by_number(node["NodeManagerAddress"]), node["NodeID"]),
        )
        alive = {node["NodeID"]: self._devices_of(node["Resources"]) for node in nodes}
        with self._lock:
            before, self._seats = self._seats, self._seats.after(alive)
            gone = tuple(d for d in self._seats.lost if before.node_of(d) is not None)
        for node, devices in before.nodes().items():
            if node not in self._seats.nodes():
                log.warning("node %s is lost, and with it devices %s", node[:8], devices)
        for node, devices in self._seats.nodes().items():
            if node not in before.nodes() and before.seats:
                log.info("node %s has come, with devices %s", node[:8], devices)
        with self._lock:
            groups = list(self._groups)
        left = [group for group in groups if group.exit_code() is None]
        with self._lock:
            self._groups = left + self._groups[len(groups) :]
        if gone and self.on_lost is not None:
            self.on_lost(gone)

    def close(self) -> None:
        """Leave the cluster; what was started on it ends."""
        self._closed.set()
        self._ray.shutdown()
        if self._folder is not None:
            self._folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _devices_of(self, resources: dict[str, float]) -> int:
        by_cpu = int(resources.get("CPU", 0) / self._cpus) if self._cpus else None
        if self._device == "cpu":
            return by_cpu or 0
        gpus = int(resources.get("GPU", 0))
        return gpus if by_cpu is None else min(gpus, by_cpu)

    def _is_there(self, node: str) -> bool:
        return any(seat.node == node for seat in self._seats.seats)

    def _watch(self) -> None:
        while not self._closed.wait(self._watch_s):
            with contextlib.suppress(Exception):  # Ray is being shut down, or its head is away
                self.refresh()


def _join(address: str) -> Any:
    ray = ray_library()
    try:
        ray.init(address=address, logging_level="warning")
    except (ConnectionError, ray.exceptions.RayError) as error:
        last = str(error).strip().splitlines()[-1]
        hint = f"start one with ray start --head ({last})"
        check(False, "Ray cluster", f"a running one at {address}", "none", hint)
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":  # Ray sets it where it has a token
        log.warning(
            "this Ray cluster asks nobody for a token: whoever reaches its ports can run code on "
            "it; start it with RAY_AUTH_MODE=token"
        )
    return ray


def _refuses(node: dict[str, Any]) -> bool:
    """Whether nobody listens at a node's raylet. Not being heard of says nothing."""
    try:
        place = (node["NodeManagerAddress"], node["NodeManagerPort"])
        with socket.create_connection(place, timeout=0.5):
            return False
    except OSError as error:
        return error.errno == errno.ECONNREFUSED


def _by_number(address: str) -> tuple[int, object]:
    """Order of addresses: 10.0.0.9 before 10.0.0.10."""
    try:
        return 0, int(ipaddress.ip_address(address))
    except ValueError:
        return 1, address
