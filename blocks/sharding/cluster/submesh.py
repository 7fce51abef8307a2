"""``Submesh``: a rectangle of hosts and devices, and the logical meshes on it. Needs no torch."""

from collections.abc import Sequence
from typing import NamedTuple

from blocks._checks import check, check_count
from blocks.sharding.cluster.cluster import Cluster
from blocks.sharding.mesh import Mesh


class Submesh(NamedTuple):
    """Devices of a cluster that work on one stage: the same ones of some hosts in a row.

    first_host, num_hosts: which nodes.
    first_device, num_devices: which devices of each of them, counted inside of the node.

    >>> Submesh(0, 1, 4, 4), str(Submesh(2, 2, 0, 8))
    (Submesh(first_host=0, num_hosts=1, first_device=4, num_devices=4), '2 x 8 from host 2')
    """

    first_host: int
    num_hosts: int
    first_device: int
    num_devices: int

    @classmethod
    def whole(cls, cluster: Cluster) -> "Submesh":
        """All of a cluster whose nodes are of one size."""
        return cls(0, len(cluster.nodes), 0, cluster.nodes[0].num_devices)

    def __str__(self) -> str:
        at = f" device {self.first_device}" if self.first_device else ""
        return f"{self.num_hosts} x {self.num_devices} from host {self.first_host}{at}"

    def devices(self, cluster: Cluster) -> tuple[int, ...]:
        """The numbers of its devices, host by host.

        Raises:
            ValueError: hosts or devices that the cluster does not have.
        """
        check_count("num_hosts", self.num_hosts)
        check_count("num_devices", self.num_devices)
        last = self.first_host + self.num_hosts
        ok = self.first_host >= 0 and last <= len(cluster.nodes)
        check(ok, "hosts of the submesh", f"inside of {len(cluster.nodes)} nodes", self)
        found: list[int] = []
        for host in range(self.first_host, last):
            own = cluster.devices_of(host)
            ok = self.first_device >= 0 and self.first_device + self.num_devices <= len(own)
            check(ok, f"devices on host {host}", f"inside of {len(own)}", self)
            found += own[self.first_device : self.first_device + self.num_devices]
        return tuple(found)

    def mesh(self, cluster: Cluster, axes: Sequence[str], sizes: Sequence[int]) -> Mesh:
        """A logical mesh on its devices; the last axis runs inside of a host first."""
        return Mesh(tuple(axes), tuple(sizes), self.devices(cluster))


def mesh_shapes(num_devices: int, num_axes: int) -> tuple[tuple[int, ...], ...]:
    """The sizes of all grids of so many axes that have so many devices, the first falling.

    >>> mesh_shapes(4, 2)
    ((4, 1), (2, 2), (1, 4))
    """
    check_count("num_devices", num_devices)
    check_count("num_axes", num_axes)
    if num_axes == 1:
        return ((num_devices,),)
    return tuple(
        (first, *rest)
        for first in range(num_devices, 0, -1)
        if num_devices % first == 0
        for rest in mesh_shapes(num_devices // first, num_axes - 1)
    )


def logical_meshes(
    cluster: Cluster, submesh: Submesh, axes: Sequence[str] = ("data", "tensor")
) -> tuple[Mesh, ...]:
    """All logical meshes with these axes on a submesh.

    >>> from blocks.sharding.cluster import bundled_cluster
    >>> logical_meshes(bundled_cluster("8xA100"), Submesh(0, 1, 0, 2))
    (Mesh(data=2, tensor=1), Mesh(data=1, tensor=2))
    """
    count = submesh.num_hosts * submesh.num_devices
    return tuple(submesh.mesh(cluster, axes, sizes) for sizes in mesh_shapes(count, len(axes)))


def crossing_axes(cluster: Cluster, mesh: Mesh) -> tuple[str, ...]:
    """The mesh axes along which some group of ranks spans several nodes.

    >>> from blocks.sharding.cluster import bundled_cluster
    >>> crossing_axes(bundled_cluster("8xA100", num_nodes=2), Mesh.of(data=4, tensor=4))
    ('data',)
    """
    return tuple(
        axis
        for axis in mesh.axes
        if any(len({cluster.node_of(rank) for rank in group}) > 1 for group in mesh.groups(axis))
    )
