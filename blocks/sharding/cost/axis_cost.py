"""``AxisCost``: the collectives along one axis of a mesh, all its groups at once. No torch."""

import collections
import dataclasses

from blocks._checks import fail
from blocks.sharding.cluster.cluster import Cluster
from blocks.sharding.cluster.link import Clock, Link, Moving
from blocks.sharding.cluster.wiring import exchange_share
from blocks.sharding.mesh import Mesh


@dataclasses.dataclass(frozen=True)
class AxisCost:
    """What it takes where every group along an axis runs the same collective.

    num_ranks: of a group. num_all: of the mesh.
    link: the slowest that joins a group.
    inside: where groups span nodes, the slowest link inside of those; else None.
    rank_shares: for a ring and for an all-to-all, the seconds that pass for each byte a rank
        sends over ``link``, in those of one device that has the link to itself.
    per_core: ranks of one group on a core of their node; 0 where they share none.
    turns: of all ranks at work, at least 1.
    """

    num_ranks: int
    num_all: int
    link: Link
    inside: Link | None
    rank_shares: tuple[float, float]
    per_core: float
    turns: float

    @classmethod
    def of(cls, cluster: Cluster, mesh: Mesh, axis: str, turns: float) -> "AxisCost":
        """For one axis of a mesh on a cluster."""
        groups = mesh.groups(axis)
        links = {cluster.link_of(group) for group in groups}
        link = min(links, key=lambda one: (one.bytes_per_s, one.name))
        crossing = [g for g in groups if len({cluster.node_of(rank) for rank in g}) > 1]
        inside, shares, size = None, (1.0, 1.0), mesh.size(axis)
        if crossing:
            nodes = {cluster.node_of(rank) for group in crossing for rank in group}
            own = [cluster.link(cluster.nodes[node].link) for node in sorted(nodes)]
            inside = min(own, key=lambda one: one.bytes_per_s)
            shares = _shares(cluster, crossing, link)
        elif size > 1:
            shares = 1.0, max(_exchange(cluster, group, link) for group in groups)
        counts = collections.Counter(map(cluster.node_of, groups[0]))
        cores = [(count, cluster.nodes[node].cores) for node, count in counts.items()]
        per_core = max(0.0 if there is None else count / there for count, there in cores)
        return cls(size, mesh.num_ranks, link, inside, shares, per_core, max(turns, per_core))

    def seconds(self, collective: Moving, sent: int | float, clock: Clock) -> float:
        """Seconds where every rank sends so many bytes; of the clock ``cpu`` summed over ranks."""
        if clock == "cpu":
            table = self.link.table(collective, self.num_ranks, "cpu")
            if table is None:
                hint = "python -m recipes.plan calibrate measures them"
                raise fail(
                    f"cpu seconds of {collective}", f"a table in {self.link.name}", "none", hint
                )
            return table.curve(sent) * self.num_all
        whole = self.link.seconds(collective, sent, self.num_ranks)
        latency = self.link.seconds(collective, 0, self.num_ranks)
        share = self.rank_shares[collective == "all_to_all"]
        moving = (whole - latency) * share
        if self.inside is not None:
            moving = max(moving, sent / self.inside.bytes_per_s)
        table = self.link.table(collective, self.num_ranks, "elapsed")
        measured = self.num_ranks if table is None else table.num_ranks
        alone = max(1.0, self.per_core * measured / self.num_ranks)  # in the seconds already
        return (latency + moving) * max(1.0, self.turns / alone)


def _exchange(cluster: Cluster, group: tuple[int, ...], link: Link) -> float:
    """How long a byte takes in an all-to-all inside of a node, in those of a ring."""
    node = cluster.node_of(group[0])
    if not cluster.nodes[node].lanes:
        return 1.0
    first = cluster.devices_of(node)[0]
    own = tuple(sorted(device - first for device in group))
    return exchange_share(cluster.nodes[node].lanes, own) * link.lanes


def _shares(cluster: Cluster, groups: list[tuple[int, ...]], link: Link) -> tuple[float, float]:
    """How long a byte takes over a link between nodes: in rings, and in all-to-alls.

    A ring that has k ranks on a node enters and leaves it once, over as many adapters as those
    have; in an all-to-all each of the k sends to every rank elsewhere. What the devices of a node
    send together is bounded, and shared by the groups there.
    """
    crowd = collections.Counter(node for g in groups for node in {*map(cluster.node_of, g)})
    ring = exchange = 0.0
    for group in groups:
        for node, own in collections.Counter(map(cluster.node_of, group)).items():
            rate = own * link.bytes_per_s
            if link.node_bytes_per_s is not None:
                rate = min(rate, link.node_bytes_per_s / crowd[node])
            ring = max(ring, link.bytes_per_s / rate)
            away = own * (len(group) - own) / (len(group) - 1)
            exchange = max(exchange, away * link.bytes_per_s / rate)
    return ring, exchange
