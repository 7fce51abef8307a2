"""``pose``: the choice of strategies for a graph on a mesh as a ``Problem``. Needs numpy."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence

import numpy as np

from blocks._checks import check_count, check_positive, fail
from blocks.sharding.cost.cost_model import CostModel
from blocks.sharding.intra_op.hints import Copy, Hints
from blocks.sharding.intra_op.node_labels import NodeLabels, label_node
from blocks.sharding.intra_op.pins import Pin, find_pins, pinned
from blocks.sharding.intra_op.problem import Problem, Table, Term
from blocks.sharding.intra_op.reads import Reads, reads_of
from blocks.sharding.intra_op.reshard_table import ReshardTables
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_graph import OpGraph, OpNode, TensorValue
from blocks.sharding.strategy import Strategy, strategies

Allowed = Callable[[OpNode, Strategy], bool]
"""Whether a strategy of a node may be chosen."""

StateBytes = Callable[[TensorValue], int | float]
"""Bytes of optimizer state for each element of a parameter."""


def adamw_bytes(value: TensorValue) -> float:
    """Two moments in float32 or wider, and a float32 copy of parameters that are narrower."""
    return 2.0 * value.itemsize if value.itemsize >= 4 else 12.0


@dataclasses.dataclass(frozen=True, eq=False)
class Posed:
    """A graph's choice of strategies, posed.

    problem: its first variables are the nodes, in order, and then the shared copies.
    labels: of every node.
    hints: how labels and variables hang together.
    """

    problem: Problem
    labels: tuple[NodeLabels, ...]
    hints: Hints

    def strategies(self, labels: Sequence[int]) -> tuple[Strategy, ...]:
        """What a choice of labels means, node by node."""
        pairs = zip(self.labels, labels, strict=False)
        return tuple(node.strategies[at] for node, at in pairs)


def pose(
    graph: OpGraph,
    mesh: Mesh,
    cost: CostModel,
    *,
    num_microbatches: int = 1,
    in_flight: int | float = 1,
    pins: Mapping[str, Pin] | None = None,
    allowed: Allowed | None = None,
    state_bytes: StateBytes = adamw_bytes,
) -> Posed:
    """Seconds of a microbatch as a function of one strategy for every node.

    What happens once a step counts by the microbatch: divided by their number. A value that
    readers of one phase want in the same other placement is resharded once for them: where three
    or more read it, at most one such placement is shared in the price.

    Args:
        num_microbatches: of a step.
        in_flight: microbatches whose activations are held at once.
        pins: what is decided beforehand, by name of node or value.
        allowed: keeps strategies out of the choice.
        state_bytes: what the optimizer keeps.

    Raises:
        ValueError: a node that is left without a strategy.
    """
    check_count("num_microbatches", num_microbatches)
    check_positive("in_flight", in_flight)
    found = find_pins(graph, pins or {}, mesh)
    saved = saved_values(graph)
    kept: dict[Hashable, NodeLabels] = {}
    scaled: dict[tuple[int, bool], tuple[Table, Table]] = {}
    labels, seconds, memory = [], [], []
    for at, node in enumerate(graph.nodes):
        free = not allowed and at not in found
        key = _key(graph, node, saved) if free else at
        if key not in kept:
            choice = strategies(node.rule, mesh)
            if allowed:
                choice = tuple(s for s in choice if allowed(node, s))
            choice = pinned(node, choice, found.get(at, ()))
            bytes_each = _state_bytes(graph, node, state_bytes)
            kept[key] = label_node(node, graph.values, saved, choice, mesh, cost, bytes_each)
            if not kept[key].strategies:
                hint = "allow more, or let it be computed on fewer ranks"
                raise fail(f"strategies of {node.name} ({node.op})", "at least one", 0, hint)
        label = kept[key]
        per_step = node.phase == "update"
        if (id(label), per_step) not in scaled:
            weight = 1 / num_microbatches if per_step else 1.0
            held = label.fixed_bytes + in_flight * label.flight_bytes
            scaled[id(label), per_step] = weight * label.seconds, held
        labels.append(label)
        seconds.append(scaled[id(label), per_step][0])
        memory.append(scaled[id(label), per_step][1])
    tables = ReshardTables(cost)
    terms: list[Term] = []
    copies: list[Copy] = []
    for reads in reads_of(graph):
        weight = 1 / num_microbatches if reads.once_a_step else 1.0
        _add_reads(reads, graph, labels, tables, weight, seconds, memory, terms, copies)
    kinds = {id(one): np.array([s.choices for s in one.strategies]) for one in kept.values()}
    hints = Hints(tuple(copies), tuple(kinds[id(one)] for one in labels))
    return Posed(Problem(tuple(seconds), tuple(terms), tuple(memory)), tuple(labels), hints)


def saved_values(graph: OpGraph) -> frozenset[int]:
    """Values that wait for the backward pass: activations, and what the stage received."""
    arrived = {
        at
        for at, maker in enumerate(graph.maker)
        if graph.nodes[maker].role == "input"
        and graph.nodes[maker].phase == "forward"
        and any(graph.nodes[reader].phase == "backward" for reader, _ in graph.readers[at])
    }
    return frozenset((*graph.saved, *arrived))


def _key(graph: OpGraph, node: OpNode, saved: frozenset[int]) -> Hashable:
    """Nodes with the same have the same labels."""
    tensors = [
        (value.shape, value.dtype, value.storage)
        for value in (graph.values[v] for v in (*node.inputs, *node.outputs))
    ]
    keeps = tuple(v in saved for v in node.outputs)
    return node.rule, node.role, node.phase, tuple(tensors), keeps


def _state_bytes(graph: OpGraph, node: OpNode, state_bytes: StateBytes) -> float:
    return state_bytes(graph.values[node.outputs[0]]) if node.role == "update" else 0.0


def _add_reads(
    reads: Reads,
    graph: OpGraph,
    labels: Sequence[NodeLabels],
    tables: ReshardTables,
    weight: float,
    seconds: list[Table],
    memory: list[Table],
    terms: list[Term],
    copies: list[Copy],
) -> None:
    """The terms of a value and those that read it in one phase."""
    value = graph.values[reads.value]
    source = labels[reads.maker], reads.maker_place
    targets = [(labels[node], places) for node, places in reads.readers]
    nodes = [node for node, _ in reads.readers]
    if len(nodes) == 1:
        table = tables.together(value, weight, source, targets)
        terms.append(Term((reads.maker, *nodes), table))
        return
    count, to_copy, through = tables.shared(value, weight, source, targets)
    if count == 1:
        for node, target in zip(nodes, targets, strict=True):
            table = tables.together(value, weight, source, [target])
            terms.append(Term((reads.maker, node), table))
        return
    copy = len(seconds)
    seconds.append(tables.zeros(count))
    memory.append(tables.zeros(count))
    first = len(terms) + 1
    copied, makes, wants, prices = tables.codes(value, weight, source, targets)
    copies.append(Copy(copy, copied, first, reads.maker, makes, tuple(nodes), wants, prices))
    terms.append(Term((reads.maker, copy), to_copy))
    terms.extend(
        Term((reads.maker, copy, node), table) for node, table in zip(nodes, through, strict=True)
    )
