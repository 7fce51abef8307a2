"""``transfer_of``: what crosses from stage to stage, strategies not yet known. No torch."""

import functools
from collections.abc import Callable

from blocks.pipeline.inter_op import SubmeshShape
from blocks.sharding import Cluster
from recipes.plan.layers.chain import LayerChain

Transfer = Callable[[int, SubmeshShape, SubmeshShape], tuple[float, float]]
"""Seconds over a boundary from one shape to another and back."""


def transfer_of(
    cluster: Cluster, chain: LayerChain, *, skips: bool = True, apart: bool = False
) -> Transfer:
    """Seconds over a boundary as if both meshes cut what crosses it over all their devices.

    Which devices meet is not known yet: those of a node as if joined by as many lanes as any two of
    them are, those of different nodes as if no other stage used their nodes' links, so that stages
    as they are placed take no less. What goes once a step is left out.

    Args:
        skips: whether values that skip layers are charged to every boundary on their way. They go
            straight to the stages that read them, beside what neighbours send one another, so that
            stages may take less; without them they take no less.
        apart: whether no two stages are taken to be on one node, though they have room on it. They
            may take less, too.
    """
    sizes = boundary_bytes(chain, skips=skips)
    inside = {node.kind: node.link for node in cluster.nodes}
    joined = {node.link: max(map(max, node.lanes)) for node in cluster.nodes if node.lanes}

    between = cluster.link(cluster.between) if cluster.between else None
    ports = cluster.nodes[0].num_devices
    if between and between.node_bytes_per_s is not None:
        ports = max(1, round(between.node_bytes_per_s / between.bytes_per_s))

    @functools.cache
    def send_s(num_bytes: int, lanes: int, link: str) -> float:
        wire = cluster.link(link)
        wire = wire.part(joined[link]) if link in joined else wire
        return wire.seconds("send", num_bytes / lanes, 2) if num_bytes else 0.0

    def transfer(bound: int, before: SubmeshShape, after: SubmeshShape) -> tuple[float, float]:
        together = before.size + after.size <= cluster.nodes[0].num_devices
        alone = len(cluster.nodes) == 1
        near = alone or (together and before.kind == after.kind and not apart)
        kind = before.kind or cluster.nodes[0].kind
        link = inside[kind] if near else cluster.between
        lanes = min(before.size, after.size)
        if not near:
            lanes = min(lanes, ports * min(before.num_hosts, after.num_hosts))
        there, back = sizes[bound]
        return send_s(there, lanes, link), send_s(back, lanes, link)

    return transfer


def has_skips(chain: LayerChain) -> bool:
    """Whether values go with every microbatch from layers to others than their neighbours."""
    return boundary_bytes(chain) != boundary_bytes(chain, skips=False)


def boundary_bytes(chain: LayerChain, *, skips: bool = True) -> list[tuple[int, int]]:
    """For every bound between layers the bytes that cross it forward and backward with every
    microbatch; a value that several layers read is sent over a bound once.

    Args:
        skips: whether those count that layers further on read; else what neighbours read alone.
    """
    found = [[0, 0] for _ in range(chain.num_layers + 1)]
    reach: dict[tuple[int, int, bool], int] = {}
    for layer, template in enumerate(chain.sequence):
        cut = chain.layers[template]
        for number, (value, _) in enumerate(cut.receives):
            source, local = chain.source_of(layer, number)
            away = abs(layer - source)
            if value not in cut.once and (skips or away == 1):
                key = (source, local, layer > source)
                reach[key] = max(reach.get(key, 0), away)
    for (source, local, forward), away in reach.items():
        size = chain.layers[chain.sequence[source]].graph.values[local].num_bytes
        first = source + 1 if forward else source - away + 1
        for bound in range(first, first + away):
            found[bound][0 if forward else 1] += size
    return [(forward, backward) for forward, backward in found]
