"""``cut_graph``: a training step's graph cut into the graphs of pipeline stages. No torch."""

import dataclasses
import functools
from collections.abc import Sequence

from blocks._checks import check, fail
from blocks.sharding.op_graph import OpGraph, OpNode, Phase, TensorValue
from blocks.sharding.op_rule import Factor, OpRule

RECEIVE, SEND = "receive", "send"
"""The ops of the nodes at which values enter a stage from others, and leave it for others."""


@dataclasses.dataclass(frozen=True)
class StageGraph:
    """What one stage does, with an input for what it receives and an output for what it sends.

    graph: nodes and values of this stage alone. What arrives may arrive in any placement, and
        what leaves is no sum that is still to be taken.
    nodes: for every node its index in the whole graph; -1 for those that receive or send.
    values: for every value its index in the whole graph.
    receives: (index in the whole graph, stage that makes it) of every value that arrives.
    sends: (index in the whole graph, stages that read it) of every value that leaves.
    once: those of both that need to go once a step only (``OpGraph.once_a_step``).
    """

    graph: OpGraph
    nodes: tuple[int, ...]
    values: tuple[int, ...]
    receives: tuple[tuple[int, int], ...]
    sends: tuple[tuple[int, tuple[int, ...]], ...]
    once: frozenset[int] = frozenset()

    @functools.cached_property
    def local(self) -> dict[int, int]:
        """Index here by index in the whole graph, of values."""
        return {whole: at for at, whole in enumerate(self.values)}


def cut_graph(graph: OpGraph, stage_of: Sequence[int]) -> tuple[StageGraph, ...]:
    """The graphs of all stages.

    What depends on inputs alone (positions, masks) is computed by every stage that reads it
    instead of being sent. A value that several stages read leaves once.

    Args:
        stage_of: for every node the stage it belongs to; stages count from 0.

    Raises:
        ValueError: a forward value that an earlier stage reads, a backward value that a later one
            does, or an update that reads another stage's values.
    """
    check(len(stage_of) == len(graph.nodes), "stage_of", len(graph.nodes), len(stage_of))
    num_stages = max(stage_of, default=0) + 1
    owner = _owners(graph, stage_of)
    readers: list[set[int]] = [set() for _ in graph.values]
    for node, stage in zip(graph.nodes, stage_of, strict=True):
        for value in node.inputs if not _is_free(owner, node) else ():
            readers[value].add(stage)
    free = _free_nodes(graph, owner, readers)
    return tuple(
        _stage(graph, stage_of, owner, readers, free, stage) for stage in range(num_stages)
    )


def _owners(graph: OpGraph, stage_of: Sequence[int]) -> list[int]:
    """For every value the stage that makes it; -1 where it depends on inputs alone."""
    owner = [0] * len(graph.values)
    for node, stage in zip(graph.nodes, stage_of, strict=True):
        free = node.role == "input" or (
            node.role == "op" and bool(node.inputs) and all(owner[v] < 0 for v in node.inputs)
        )
        for value in node.outputs:
            owner[value] = -1 if free or (node.role == "op" and not node.inputs) else stage
    return owner


def _is_free(owner: Sequence[int], node: OpNode) -> bool:
    return bool(node.outputs) and owner[node.outputs[0]] < 0


def _free_nodes(
    graph: OpGraph, owner: Sequence[int], readers: Sequence[set[int]]
) -> dict[int, set[int]]:
    """For every node that depends on inputs alone the stages that need it."""
    needed = [set(stages) for stages in readers]
    found: dict[int, set[int]] = {}
    for at in reversed(range(len(graph.nodes))):
        node = graph.nodes[at]
        if _is_free(owner, node):
            found[at] = set().union(*(needed[value] for value in node.outputs))
            for value in node.inputs:
                needed[value] |= found[at]
    return found


class _Cutting:
    """One stage while its nodes are taken over, in order."""

    def __init__(self, graph: OpGraph) -> None:
        self.graph = graph
        self.local: dict[int, int] = {}
        self.whole: list[int] = []
        self.nodes: list[OpNode] = []
        self.origins: list[int] = []
        self.receives: list[tuple[int, int]] = []
        self.sends: list[tuple[int, tuple[int, ...]]] = []

    def take(self, value: int) -> int:
        self.local[value] = len(self.whole)
        self.whole.append(value)
        return self.local[value]

    def add(self, node: OpNode, origin: int) -> None:
        self.nodes.append(node)
        self.origins.append(origin)

    def receive(self, value: int, stage: int) -> None:
        self.receives.append((value, stage))
        tensor, phase = self.graph.values[value], self.graph.nodes[self.graph.maker[value]].phase
        self.add(_end(RECEIVE, phase, self.take(value), tensor), -1)

    def send(self, value: int, phase: Phase, stages: tuple[int, ...]) -> None:
        self.sends.append((value, stages))
        self.add(_end(SEND, phase, self.local[value], self.graph.values[value]), -1)

    def stage_graph(self) -> StageGraph:
        values = tuple(self.graph.values[value] for value in self.whole)
        returns = tuple(
            (self.local[new], self.local[old])
            for new, old in self.graph.returns
            if new in self.local
        )
        cut = OpGraph(values, tuple(self.nodes), returns)
        ends = tuple(self.receives), tuple(self.sends)
        once = self.graph.once_a_step.intersection(value for value, _ in (*ends[0], *ends[1]))
        return StageGraph(cut, tuple(self.origins), tuple(self.whole), *ends, once)


def _stage(
    graph: OpGraph,
    stage_of: Sequence[int],
    owner: Sequence[int],
    readers: Sequence[set[int]],
    free: dict[int, set[int]],
    stage: int,
) -> StageGraph:
    cutting = _Cutting(graph)
    for at, node in enumerate(graph.nodes):
        if stage not in free[at] if at in free else stage_of[at] != stage:
            continue
        for value in node.inputs:
            if value not in cutting.local:
                _check_way(graph.nodes[graph.maker[value]], node, owner[value], stage)
                cutting.receive(value, owner[value])
        inputs = tuple(cutting.local[value] for value in node.inputs)
        outputs = tuple(map(cutting.take, node.outputs))
        cutting.add(dataclasses.replace(node, inputs=inputs, outputs=outputs), at)
        for value in node.outputs:
            others = tuple(sorted(readers[value] - {stage}))
            if owner[value] >= 0 and others:
                cutting.send(value, node.phase, others)
    return cutting.stage_graph()


def _check_way(maker: OpNode, reader: OpNode, source: int, stage: int) -> None:
    """Forward values go up, backward values down, and updates stay where they are."""
    if maker.phase == "update" or reader.phase == "update":
        raise fail(f"stage of {reader.name}", f"{source}, that of {maker.name}", stage)
    forward = maker.phase == "forward"
    if source > stage if forward else source < stage:
        order = "a later" if forward else "an earlier"
        what = f"reader {reader.name} of the {maker.phase} value of {maker.name}"
        raise fail(what, f"{order} stage than {source}", stage)


def _end(op: str, phase: Phase, value: int, tensor: TensorValue) -> OpNode:
    dims = tuple(range(len(tensor.shape)))
    factors = tuple(Factor(f"dim{dim}", size) for dim, size in enumerate(tensor.shape))
    name = f"{op}:{tensor.name}"
    if op == RECEIVE:
        rule = OpRule(factors, (), (dims,))
        return OpNode(name, op, "input", phase, (), (value,), rule)
    return OpNode(name, op, "output", phase, (value,), (), OpRule(factors, (dims,), ()))
