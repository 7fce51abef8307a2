"""``cluster_layers``: layers of a model without repeated blocks. Needs numpy, no torch."""

from collections.abc import Sequence

from blocks.pipeline.inter_op import Value, cluster_operators
from blocks.sharding import OpGraph

MAX_LAYERS = 8
MIN_HEAVY = 3
"""Matrix products and convolutions of a layer."""


def cluster_layers(graph: OpGraph, forward: Sequence[int]) -> list[int] | None:
    """For every node a layer; those of other than forward operations mean nothing.

    Layers are runs of the forward pass with about as many FLOPs, cut where few bytes cross.

    Args:
        forward: the operations to be cut into layers, in order.

    Returns:
        None for models too small for more than one layer.
    """
    flops = [graph.nodes[at].rule.flops() for at in forward]
    heavy = [count > 0 for count in flops]
    num_layers = min(MAX_LAYERS, sum(heavy) // MIN_HEAVY)
    if num_layers < 2:
        return None
    place = {at: number for number, at in enumerate(forward)}
    values = []
    for number, at in enumerate(forward):
        for value in graph.nodes[at].outputs:
            readers = {place[r] for r, _ in graph.readers[value] if r in place}
            if readers:
                values.append(Value(number, tuple(sorted(readers)), graph.values[value].num_bytes))
    found = None
    for imbalance in (0.5, 1.0, 2.0, float(len(flops))):
        try:
            found = cluster_operators(
                flops, values, num_layers, is_heavy=heavy, imbalance=imbalance
            )
            break
        except ValueError:
            continue
    if found is None:
        return None
    layer = [0] * len(graph.nodes)
    for at, number in place.items():
        layer[at] = sum(number >= bound for bound in found.bounds[1:-1])
    return layer
