"""``LayerPrice``: what every layer of a chain takes and holds under given strategies. No torch."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from blocks.sharding import MeshCost, OpGraph, Strategy, TensorValue, local_sizes
from blocks.sharding.cost import reshard_steps
from blocks.sharding.intra_op import moves
from blocks.sharding.intra_op.node_labels import (
    inner_gathers,
    inner_reduces,
    is_view,
    local_elements,
    node_bytes,
    touched_bytes,
)
from blocks.sharding.intra_op.pose import saved_values
from blocks.sharding.op_graph import OpNode


@dataclasses.dataclass
class LayerPrice:
    """Of one layer, on the device of the mesh that has most to do.

    compute_s: seconds of operations by phase: of a microbatch, of the update once a step.
    collective_s: seconds by phase and kind of collective.
    parameter_bytes, gradient_bytes, optimizer_bytes: held throughout.
    flight_bytes: kept of a microbatch from its forward to its backward.
    transient_bytes: what its largest operation reads and writes.
    arrives_bytes: what it keeps of another layer's outputs, were it the first of a stage.
    again_s: seconds by which its backward is longer where its forward is repeated; 0 where that was
        not asked for.
    """

    compute_s: dict[str, float] = dataclasses.field(default_factory=dict)
    collective_s: dict[tuple[str, str], float] = dataclasses.field(default_factory=dict)
    parameter_bytes: float = 0.0
    gradient_bytes: float = 0.0
    optimizer_bytes: float = 0.0
    flight_bytes: float = 0.0
    transient_bytes: float = 0.0
    arrives_bytes: float = 0.0
    again_s: float = 0.0

    def seconds(self, phase: str) -> float:
        """Of operations and collectives."""
        moved = sum(s for (of, _), s in self.collective_s.items() if of == phase)
        return self.compute_s.get(phase, 0.0) + moved

    @property
    def fixed_bytes(self) -> float:
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes


def total_price(prices: Sequence[LayerPrice], counts: Sequence[int]) -> LayerPrice:
    """Of layers together, each as often as ``counts`` says."""
    total = LayerPrice()
    for price, count in zip(prices, counts, strict=True):
        _add(total.compute_s, price.compute_s, count)
        _add(total.collective_s, price.collective_s, count)
        for name in ("parameter_bytes", "gradient_bytes", "optimizer_bytes", "flight_bytes"):
            setattr(total, name, getattr(total, name) + count * getattr(price, name))
        total.transient_bytes = max(total.transient_bytes, price.transient_bytes)
    return total


def _add(into: dict, of: Mapping, count: int) -> None:
    for key, seconds in of.items():
        into[key] = into.get(key, 0.0) + count * seconds


def layer_prices(
    graph: OpGraph,
    layer_of: Sequence[int],
    strategies: Sequence[Strategy],
    cost: MeshCost,
    state_bytes: Callable[[TensorValue], float],
) -> tuple[LayerPrice, ...]:
    """What the layers of a graph take and hold.

    A tensor that changes its placement on the way to another layer is charged to the layer that
    makes it.

    Args:
        layer_of: for every node its layer.
    """
    prices = [LayerPrice() for _ in range(max(layer_of) + 1)]
    saved, mesh = saved_values(graph), cost.mesh
    for node, at, strategy in zip(graph.nodes, layer_of, strategies, strict=True):
        price = prices[at]
        _hold(price, graph, node, strategy, cost, saved, state_bytes)
        outputs = [graph.values[value] for value in node.outputs]
        if node.role in ("input", "parameter", "output") or is_view(outputs):
            continue
        touched = touched_bytes(node, graph.values, strategy, mesh)
        price.transient_bytes = max(price.transient_bytes, touched)
        dtype = outputs[0].dtype if outputs else "float32"
        sizes = local_sizes(node.rule, strategy, mesh, mesh.ranks[0])
        took = cost.compute_s(node.rule, sizes, touched, dtype)
        price.compute_s[node.phase] = price.compute_s.get(node.phase, 0.0) + took
        for reduce in inner_reduces(node.rule, strategy, outputs, mesh):
            took = cost.collective_s("all_reduce", reduce.num_bytes, reduce.axis)
            _add(price.collective_s, {(node.phase, "all_reduce"): took}, 1)
        for step in inner_gathers(node.rule, strategy, mesh):
            sent = step.sent_bytes(outputs[0].shape, node.rule.gathered_itemsize)
            took = cost.sent_s(step.collective, sent, step.axis)
            _add(price.collective_s, {(node.phase, step.collective): took}, 1)
    for value in saved:
        maker = graph.maker[value]
        readers = {layer_of[reader] for reader, _ in graph.readers[value]} - {layer_of[maker]}
        outputs = strategies[maker].outputs[graph.nodes[maker].outputs.index(value)]
        tensor = graph.values[value]
        for reader in readers:
            held = local_elements(tensor.shape, outputs, mesh) * tensor.itemsize
            prices[reader].arrives_bytes += held
    for move in moves(graph, strategies):
        value, price = graph.values[move.value], prices[layer_of[graph.maker[move.value]]]
        for step in reshard_steps(mesh, move.source, move.target):
            took = cost.step_s(step, value.shape, value.itemsize)
            if step.collective == "narrow" or step.collective == "mask":  # an operation that copies
                _add(price.compute_s, {move.phase: took}, 1)
            else:
                _add(price.collective_s, {(move.phase, step.collective): took}, 1)
    return tuple(prices)


def _hold(
    price: LayerPrice,
    graph: OpGraph,
    node: OpNode,
    strategy: Strategy,
    cost: MeshCost,
    saved: frozenset[int],
    state_bytes: Callable[[TensorValue], float],
) -> None:
    each = state_bytes(graph.values[node.outputs[0]]) if node.role == "update" else 0.0
    fixed, flight = node_bytes(node, graph.values, saved, strategy, cost.mesh, each)
    price.flight_bytes += flight
    if node.role == "parameter":
        price.parameter_bytes += fixed
    elif node.role == "accumulate":
        price.gradient_bytes += fixed
    elif node.role == "update":
        price.optimizer_bytes += fixed
