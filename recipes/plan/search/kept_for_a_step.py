"""``kept_for_a_step``: what a stage holds because it goes between stages once a step. No torch."""

from collections.abc import Sequence
from typing import NamedTuple

from blocks.sharding import Mesh, Strategy
from blocks.sharding.intra_op.node_labels import local_elements
from blocks.sharding.intra_op.pose import saved_values
from blocks.sharding.stage_graph import RECEIVE, SEND
from recipes.plan.layers.reduced import Reduced

WIDE = 4
"""Bytes of an element of a sum at least."""


class Kept(NamedTuple):
    """Bytes on a device.

    copy_bytes: parameters of other stages, kept from the first microbatch on.
    flight_bytes: those of them that the backward pass reads, which all microbatches share.
    sum_bytes: gradients for other stages, summed until the last microbatch.
    """

    copy_bytes: float = 0.0
    flight_bytes: float = 0.0
    sum_bytes: float = 0.0


def kept_for_a_step(reduced: Reduced, strategies: Sequence[Strategy], mesh: Mesh) -> Kept:
    """Of a stage under its strategies; nothing where the chain it is cut from is not known."""
    chain, graph, found = reduced.chain, reduced.graph, Kept()
    if chain is None:
        return found
    saved = saved_values(graph)
    for at, node in enumerate(graph.nodes):
        if node.op not in (RECEIVE, SEND):
            continue
        place, origin = reduced.origins[at]
        cut = chain.layers[chain.sequence[reduced.stands_for[place][0]]]
        end = cut.graph.nodes[origin]
        if cut.values[(*end.inputs, *end.outputs)[0]] not in cut.once:
            continue
        value = (*node.inputs, *node.outputs)[0]
        placements = (*strategies[at].inputs, *strategies[at].outputs)[0]
        tensor = graph.values[value]
        elements = local_elements(tensor.shape, placements, mesh)
        if node.op == RECEIVE and node.phase == "forward":
            size = elements * tensor.itemsize
            shared = size * (value in saved)
            found = Kept(found.copy_bytes + size, found.flight_bytes + shared, found.sum_bytes)
        elif node.op == SEND and node.phase == "backward":
            size = elements * max(tensor.itemsize, WIDE)
            found = found._replace(sum_bytes=found.sum_bytes + size)
    return found
