"""``OpMesh``: what every layer of a forward pass takes on ``op`` devices. Needs numpy."""

import dataclasses
from collections.abc import Mapping, Sequence

from blocks.sharding import Cluster, Mesh, MeshCost, OpGraph, Strategy, TensorValue
from blocks.sharding.intra_op import minimise, pose
from blocks.sharding.intra_op.node_labels import local_elements
from blocks.sharding.placement import Placement
from recipes.plan.inference.forward_graph import COPY
from recipes.plan.inference.token_cuts import cuts_weights
from recipes.plan.layers.chain import LayerChain
from recipes.plan.layers.node_names import name_pattern
from recipes.plan.layers.reduced import Reduced
from recipes.plan.search.candidates import Candidate
from recipes.plan.search.layer_price import layer_prices
from recipes.plan.stage_plan import placements_text

BYTES_SHARE = 0.02
"""What all bytes of the model are worth, as a share of its latency: of ways that take as long, the
one that holds less."""


@dataclasses.dataclass(frozen=True)
class LayerTime:
    """Of one layer, on each of the devices that share its operations.

    seconds: by batch size, collectives included.
    collective_s: of these, by batch size.
    weight_bytes: of its parameters, by name.
    kv_bytes: keys and values of a token.
    transient_bytes: beside its parameters, by batch size.
    placements: how its parameters lie, by name.
    """

    seconds: Mapping[int, float]
    collective_s: Mapping[int, float]
    weight_bytes: Mapping[str, int]
    kv_bytes: float
    transient_bytes: Mapping[int, float]
    placements: Mapping[str, str]


class OpMesh:
    """``op`` devices that share the operations of every layer, whatever passes through them.

    The strategies are the fastest for the smallest batch, and stay for larger ones; parameters lie
    alike for every pass: weights do not move between requests. Rows and tokens are never cut.
    """

    def __init__(self, cluster: Cluster, devices: Sequence[int]) -> None:
        self.mesh = Mesh(("x",), (len(devices),), tuple(devices))
        self.cost = MeshCost(cluster, self.mesh)
        self._lies: dict[str, tuple[Placement, ...]] = {}  # parameters, by node

    def layer_times(
        self, chains: Mapping[int, LayerChain], *, keeps_kv: bool = False
    ) -> tuple[LayerTime, ...]:
        """Every layer of a pass. Parameters lie as in the first one asked for.

        Args:
            chains: layers by batch size.
            keeps_kv: whether keys and values are kept for tokens to come.
        """
        mesh, cost = self.mesh, self.cost
        reduced = {size: Reduced.of(chain) for size, chain in chains.items()}
        first = reduced[min(reduced)]
        candidate = Candidate(mesh, self._fastest(first.graph))
        strategies = _strategies(candidate, first.graph)
        for node, strategy in zip(first.graph.nodes, strategies, strict=True):
            if node.role == "parameter":
                self._lies.setdefault(node.name, strategy.outputs[0])
        prices = {}
        for size, one in reduced.items():
            chosen = _strategies(candidate, one.graph)
            prices[size] = layer_prices(one.graph, one.layer_of, chosen, cost, lambda value: 0.0)
        found: list[LayerTime] = []
        for place, stands_for in enumerate(first.stands_for):
            mine = [at for at, layer in enumerate(first.layer_of) if layer == place]
            bytes_of, lies = _weights(first.graph, strategies, mesh, mine)
            each = {size: price[place] for size, price in prices.items()}
            time = LayerTime(
                {size: price.seconds("forward") for size, price in each.items()},
                {size: sum(price.collective_s.values()) for size, price in each.items()},
                bytes_of,
                _kv_bytes(first.graph, strategies, mesh, mine) if keeps_kv else 0.0,
                {size: price.transient_bytes for size, price in each.items()},
                lies,
            )
            found += [time] * len(stands_for)
        return tuple(found)

    def _fastest(self, graph: OpGraph) -> tuple[tuple[int, ...], ...]:
        """What every node cuts: least seconds, and of ways about as fast the least bytes."""
        posed = pose(
            *(graph, self.mesh, self.cost),
            allowed=cuts_weights(graph, self.mesh),
            state_bytes=lambda value: 0.0,
            pins=self._lies,
        )
        best = minimise(posed.problem, hints=posed.hints, sweeps=0)
        held = sum(value.num_bytes for value in _parameters(graph))
        price = BYTES_SHARE * best.seconds / max(held, 1)
        problem = posed.problem.priced(price)
        labels = minimise(problem, hints=posed.hints, start=best.labels, sweeps=0).labels
        return tuple(strategy.choices for strategy in posed.strategies(labels))


def _strategies(candidate: Candidate, graph: OpGraph) -> tuple[Strategy, ...]:
    found = candidate.strategies(graph)
    assert found is not None, "graphs differ in rows alone, and those are not cut"
    return found


def _parameters(graph: OpGraph) -> list[TensorValue]:
    return [graph.values[n.outputs[0]] for n in graph.nodes if n.role == "parameter"]


def _weights(
    graph: OpGraph, strategies: Sequence[Strategy], mesh: Mesh, nodes: Sequence[int]
) -> tuple[dict[str, int], dict[str, str]]:
    """Bytes of the parameters of a layer on a device, and how they lie."""
    bytes_of: dict[str, int] = {}
    lies: dict[str, str] = {}
    for at in nodes:
        node = graph.nodes[at]
        if node.role == "parameter":
            name = name_pattern(node.name.partition("@")[2], node.block)
            value, placements = graph.values[node.outputs[0]], strategies[at].outputs[0]
            bytes_of[name] = local_elements(value.shape, placements, mesh) * value.itemsize
            if not name.endswith(COPY):
                lies[name] = placements_text(placements)
    return bytes_of, lies


def _kv_bytes(
    graph: OpGraph, strategies: Sequence[Strategy], mesh: Mesh, nodes: Sequence[int]
) -> float:
    """Of a token's keys and values in a layer, on a device."""
    found = 0.0
    for at in nodes:
        node = graph.nodes[at]
        if "scaled_dot_product" not in node.op:
            continue
        sides = zip(node.inputs[1:3], strategies[at].inputs[1:3], strict=True)
        for value, placements in sides:  # [rows, heads, tokens, head_dim] each
            tensor = graph.values[value]
            held = local_elements(tensor.shape, placements, mesh) * tensor.itemsize
            found += held / (tensor.shape[0] * tensor.shape[2])
    return found
