"""``cross_mesh_s``: seconds of a cross-mesh plan on a cluster, simulated. Needs no torch."""

from collections.abc import Sequence

from blocks.sharding.cluster.cluster import Cluster
from blocks.sharding.cost.mesh_cost import MeshCost, crowding
from blocks.sharding.cross_mesh.box import Box, num_elements, overlap
from blocks.sharding.cross_mesh.plan import CrossMeshPlan


def cross_mesh_s(plan: CrossMeshPlan, itemsize: int, cluster: Cluster) -> float:
    """Seconds until the last rank has its part: the reduction, then the messages.

    A rank sends one message at a time and receives one at a time, in the order of the plan. Between
    nodes a message also takes one lane out of its node and one into the other; there are as many
    as the devices' bandwidth goes into that of the node. A message that is passed on starts when it
    has come. Ranks that share processor cores take turns.

    Args:
        itemsize: bytes of an element.
        cluster: that the ranks of both meshes are devices of.

    >>> from blocks.sharding import Mesh, Replicate, Shard, ShardingSpec, bundled_cluster
    >>> from blocks.sharding.cross_mesh import plan_cross_mesh
    >>> cluster = bundled_cluster("p3.16xlarge", num_nodes=2)
    >>> cut = ShardingSpec(Mesh.of(x=8), (Shard(0),))
    >>> whole = ShardingSpec(Mesh(("x",), (8,), tuple(range(8, 16))), (Replicate(),))
    >>> plans = [plan_cross_mesh((2**20,), cut, whole, mode=m) for m in ("send_recv", "all_gather")]
    >>> [round(cross_mesh_s(plan, 4, cluster) * 1e3, 1) for plan in plans]
    [17.3, 2.4]
    """
    placements = plan.source.placements, plan.reduced.placements
    began = MeshCost(cluster, plan.source.mesh).reshard_s(plan.shape, itemsize, *placements)
    ranks = sorted({rank for t in plan.transfers for rank in (t.source, t.target)})
    turns = crowding(cluster, ranks)
    ports: dict[tuple[str, int], float] = {}
    lanes: dict[tuple[str, int], list[float]] = {}
    arrived: dict[int, list[tuple[Box, float]]] = {}
    there: dict[tuple[int, Box], float] = {}
    last = began
    for transfer in plan.transfers:
        box, source, target, relayed = transfer
        if source == target:
            continue
        link = cluster.link_of((source, target))
        used = [("out", source), ("in", target)]
        start = max(began, *(ports.get(port, began) for port in used))
        if relayed:
            if (source, box) not in there:
                there[source, box] = _came(arrived.get(source, []), box)
            start = max(start, there[source, box])
        ends = []
        nodes = cluster.node_of(source), cluster.node_of(target)
        if nodes[0] != nodes[1] and link.node_bytes_per_s is not None:
            count = max(1, round(link.node_bytes_per_s / link.bytes_per_s))
            keys = ("out", nodes[0]), ("in", nodes[1])
            ends = [lanes.setdefault(key, [began] * count) for key in keys]
            start = max([start, *(min(lane) for lane in ends)])
        took = link.seconds("send", num_elements(box) * itemsize, 2)
        if turns > 1:
            took *= turns / crowding(cluster, (source, target))
        last = max(last, start + took)
        for port in used:
            ports[port] = start + took
        for lane in ends:
            lane.remove(max(free for free in lane if free <= start))  # the one free the shortest
            lane.append(start + took)
        arrived.setdefault(target, []).append((box, start + took))
        there[target, box] = start + took
    return last


def _came(arrived: Sequence[tuple[Box, float]], box: Box) -> float:
    """When the last part of a box came."""
    return max(when for part, when in arrived if overlap(part, box) is not None)
