"""``transfer_of``: what crosses from stage to stage, strategies not yet known. No torch."""

import functools
from collections.abc import Callable

from blocks.pipeline.inter_op import SubmeshShape
from blocks.sharding import Cluster
from recipes.plan.layers.chain import LayerChain

Transfer = Callable[[int, SubmeshShape, SubmeshShape], tuple[float, float]]
"""Seconds over a boundary from one shape to another and back."""


def transfer_of(cluster: Cluster, chain: LayerChain) -> Transfer:
    """Seconds over a boundary as if both meshes cut what crosses it over all their devices.

    Which devices meet is not known yet: those of a node as if joined by as many lanes as any two of
    them are, so that stages as they are placed take no less.
    """
    sizes = boundary_bytes(chain)
    inside = {node.kind: node.link for node in cluster.nodes}
    joined = {node.link: max(map(max, node.lanes)) for node in cluster.nodes if node.lanes}

    @functools.cache
    def send_s(num_bytes: int, lanes: int, link: str) -> float:
        wire = cluster.link(link)
        wire = wire.part(joined[link]) if link in joined else wire
        return wire.seconds("send", num_bytes / lanes, 2) if num_bytes else 0.0

    def transfer(bound: int, before: SubmeshShape, after: SubmeshShape) -> tuple[float, float]:
        together = before.size + after.size <= cluster.nodes[0].num_devices
        alone = len(cluster.nodes) == 1
        near = alone or (together and before.kind == after.kind)
        kind = before.kind or cluster.nodes[0].kind
        link = inside[kind] if near else cluster.between
        lanes = min(before.size, after.size)
        there, back = sizes[bound]
        return send_s(there, lanes, link), send_s(back, lanes, link)

    return transfer


def boundary_bytes(chain: LayerChain) -> list[tuple[int, int]]:
    """For every bound between layers the bytes that cross it forward and backward."""
    num_layers = chain.num_layers
    found = [[0, 0] for _ in range(num_layers + 1)]
    for layer, template in enumerate(chain.sequence):
        cut = chain.layers[template]
        for value, source in cut.receives:
            away = source - template
            size = cut.graph.values[cut.local[value]].num_bytes
            other = min(max(layer + away, 0), num_layers - 1)
            low, high = sorted((layer, other))
            for bound in range(low + 1, high + 1):
                found[bound][0 if away < 0 else 1] += size
    return [(forward, backward) for forward, backward in found]
