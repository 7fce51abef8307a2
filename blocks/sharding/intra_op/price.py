"""``price``: what a choice of strategies costs, added up once more from the graph itself."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from blocks._checks import check
from blocks.sharding.collective_bytes import Collective, collective_bytes
from blocks.sharding.cost.cost_model import CostModel
from blocks.sharding.intra_op.node_labels import (
    inner_gathers,
    inner_reduces,
    node_bytes,
    node_seconds,
)
from blocks.sharding.intra_op.pose import adamw_bytes, saved_values
from blocks.sharding.intra_op.reads import Reads, reads_of
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_graph import OpGraph, Phase, TensorValue
from blocks.sharding.placement import Placement
from blocks.sharding.reshard_plan import plan_reshard
from blocks.sharding.spec import ShardingSpec
from blocks.sharding.strategy import Strategy


class CollectiveUse(NamedTuple):
    """The collectives of one kind along one mesh axis in one phase.

    count: how many.
    sent_bytes: by the rank with the longest parts, in all of them.
    """

    collective: Collective
    axis: str
    phase: Phase
    count: int
    sent_bytes: int


class Price(NamedTuple):
    """Seconds, bytes and collectives of a graph under strategies.

    forward_s, backward_s: of a microbatch.
    step_s: once a step: the optimizer and what goes to and from it.
    parameter_bytes, gradient_bytes, state_bytes: what the fullest rank holds throughout.
    flight_bytes: what it holds for every microbatch in flight: saved activations.
    collectives: of a microbatch and of the update, sorted; what moves nothing is left out.
    """

    forward_s: float
    backward_s: float
    step_s: float
    parameter_bytes: float
    gradient_bytes: float
    state_bytes: int | float
    flight_bytes: float
    collectives: tuple[CollectiveUse, ...]

    @property
    def fixed_bytes(self) -> float:
        """Parameters, gradients and optimizer state."""
        return self.parameter_bytes + self.gradient_bytes + self.state_bytes


class Move(NamedTuple):
    """A value that readers of one phase want in another placement, once for all of them."""

    value: int
    source: tuple[Placement, ...]
    target: tuple[Placement, ...]
    phase: Phase


def moves(graph: OpGraph, strategies: Sequence[Strategy]) -> tuple[Move, ...]:
    """Every resharding that the strategies ask for."""
    found = []
    for reads in reads_of(graph):
        source = strategies[reads.maker].outputs[reads.maker_place]
        for target in _targets(reads, strategies):
            if target != source:
                found.append(Move(reads.value, source, target, reads.phase))
    return tuple(found)


def price(
    graph: OpGraph,
    strategies: Sequence[Strategy],
    mesh: Mesh,
    cost: CostModel,
    *,
    state_bytes: Callable[[TensorValue], int | float] = adamw_bytes,
) -> Price:
    """Add up what the strategies cost, a resharding once for each value, target and phase.

    Raises:
        ValueError: not one strategy for every node.
    """
    check(len(strategies) == len(graph.nodes), "strategies", len(graph.nodes), len(strategies))
    seconds: dict[Phase, float] = {"forward": 0.0, "backward": 0.0, "update": 0.0}
    held = {"parameter": 0.0, "accumulate": 0.0, "update": 0.0}
    uses: dict[tuple[str, str, str], list[int]] = {}
    flight = 0.0
    saved = saved_values(graph)

    def use(collective: Collective, axis: str, phase: Phase, num_bytes: int) -> None:
        entry = uses.setdefault((collective, axis, phase), [0, 0])
        entry[0] += 1
        entry[1] += num_bytes

    for node, strategy in zip(graph.nodes, strategies, strict=True):
        seconds[node.phase] += node_seconds(node, graph.values, strategy, mesh, cost)
        each = state_bytes(graph.values[node.outputs[0]]) if node.role == "update" else 0.0
        fixed, extra = node_bytes(node, graph.values, saved, strategy, mesh, each)
        flight += extra
        if node.role in held:
            held[node.role] += fixed
        outputs = [graph.values[at] for at in node.outputs]
        for reduce in inner_reduces(node.rule, strategy, outputs, mesh):
            num_ranks = mesh.size(reduce.axis)
            sent = collective_bytes("all_reduce", reduce.num_bytes, 1, num_ranks)
            use("all_reduce", reduce.axis, node.phase, sent)
        for step in inner_gathers(node.rule, strategy, mesh):
            sent = step.sent_bytes(outputs[0].shape, node.rule.gathered_itemsize)
            use(step.collective, step.axis, node.phase, sent)
    for move in moves(graph, strategies):
        value = graph.values[move.value]
        took = cost.reshard_s(value.shape, value.itemsize, move.source, move.target)
        seconds[move.phase] += float(took)
        specs = ShardingSpec(mesh, move.source), ShardingSpec(mesh, move.target)
        for step in plan_reshard(*specs):
            if step.collective not in ("narrow", "mask"):
                sent = step.bytes(value.shape, value.itemsize)
                use(step.collective, step.axis, move.phase, sent)
    listed = [CollectiveUse(*key, *entry) for key, entry in sorted(uses.items())]  # type: ignore[arg-type]
    return Price(
        seconds["forward"],
        seconds["backward"],
        seconds["update"],
        held["parameter"],
        held["accumulate"],
        held["update"],
        flight,
        tuple(listed),
    )


def _targets(reads: Reads, strategies: Sequence[Strategy]) -> tuple[tuple[Placement, ...], ...]:
    """The placements that the readers want, each once, in their order."""
    found: dict[tuple[Placement, ...], None] = {}
    for node, places in reads.readers:
        for at in places:
            found[strategies[node].inputs[at]] = None
        if not places:
            found[strategies[node].outputs[0]] = None
    return tuple(found)
