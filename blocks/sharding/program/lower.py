"""``lower``: a graph and a strategy for each node, as the program of every rank. No torch."""

from collections.abc import Sequence

from blocks.sharding.mesh import Mesh
from blocks.sharding.op_graph import OpGraph, Phase
from blocks.sharding.placement import Placement
from blocks.sharding.program.instruction import (
    Compute,
    Free,
    Instruction,
    Replace,
    Reshard,
    reads,
    writes,
)
from blocks.sharding.program.program import Program, check_strategies, inputs_of, names_of
from blocks.sharding.reshard_plan import Step, plan_reshard
from blocks.sharding.spec import ShardingSpec
from blocks.sharding.strategy import Strategy

BUFFER, RENEWED = "buffer", ".new"
"""The op of the node at which a buffer enters, and of the output that is its content after the
microbatch; the output is called as the buffer, with the ending."""

_MARK: dict[Phase, str] = {"forward": "", "backward": "'", "update": '"'}


def lower(graph: OpGraph, strategies: Sequence[Strategy], mesh: Mesh) -> Program:
    """The program in which every node runs under its strategy.

    A value that several readers of a phase want in the same other placement is resharded once,
    right before the first of them, and let go after the last. What the backward pass reads of the
    forward pass is kept as its node made it: a copy is made anew (parameters that were gathered
    for the forward pass are gathered again).

    Args:
        strategies: one for each node, in their order.

    Raises:
        ValueError: strategies that do not fit the graph or the mesh.
    """
    chosen = tuple(strategies)
    check_strategies(graph, chosen, mesh)
    lowering = _Lowering(graph, chosen, mesh)
    phases: dict[Phase, list[Instruction]] = {
        phase: lowering.phase(phase) for phase in ("forward", "backward", "update")
    }
    results = tuple(lowering.results)
    kept = {*names_of(graph, "parameter"), *names_of(graph, "accumulate")}
    saved = _saved(graph, phases, kept)
    forward, backward, update = _with_frees(graph, phases, kept, saved, results)
    return Program(graph, mesh, chosen, forward, backward, update, saved, results)


class _Lowering:
    """Computes and reshards, phase by phase, without frees."""

    def __init__(self, graph: OpGraph, strategies: tuple[Strategy, ...], mesh: Mesh) -> None:
        self.graph, self.strategies, self.mesh = graph, strategies, mesh
        self.placements = {
            value: placements
            for node, strategy in zip(graph.nodes, strategies, strict=True)
            for value, placements in zip(node.outputs, strategy.outputs, strict=True)
        }
        self.returns = dict(graph.returns)
        self._buffers = {node.name: node.outputs[0] for node in graph.nodes if node.op == BUFFER
                         and node.role == "input"}  # fmt: skip
        self.copies: dict[tuple[int, tuple[Placement, ...], Phase], str] = {}
        self.plans: dict[tuple[tuple[Placement, ...], tuple[Placement, ...]], tuple[Step, ...]] = {}
        self.results: list[tuple[int, str]] = []

    def phase(self, phase: Phase) -> list[Instruction]:
        found: list[Instruction] = []
        for at, node in enumerate(self.graph.nodes):
            if node.phase != phase or node.role in ("input", "parameter"):
                continue
            targets = self.strategies[at].inputs
            if node.op == BUFFER:  # as the next microbatch reads it
                targets = (self.placements[self._buffers[node.name.removesuffix(RENEWED)]],)
            wanted = zip(node.inputs, targets, strict=True)
            inputs = tuple(self._copy(value, target, phase, found) for value, target in wanted)
            if node.role == "output":
                self.results += [(at, name) for name in inputs]
                continue
            outputs = tuple(self.graph.values[value].name for value in node.outputs)
            found.append(Compute(at, inputs, outputs))
            for new in node.outputs:
                if new in self.returns:
                    old = self.returns[new]
                    name = self._copy(new, self.placements[old], phase, found)
                    found.append(Replace(old, name))
        return found

    def _copy(
        self, value: int, target: tuple[Placement, ...], phase: Phase, found: list[Instruction]
    ) -> str:
        """The local name under which a value lies as asked; made if there is none."""
        name, source = self.graph.values[value].name, self.placements[value]
        if target == source:
            return name
        key = (value, target, phase)
        if key not in self.copies:
            copy = f"{name}@{''.join(map(str, target))}{_MARK[phase]}"
            steps = self._plan(source, target)
            found.append(Reshard(value, name, copy, target, steps))
            self.copies[key] = copy
        return self.copies[key]

    def _plan(
        self, source: tuple[Placement, ...], target: tuple[Placement, ...]
    ) -> tuple[Step, ...]:
        key = (source, target)
        if key not in self.plans:
            before, after = (ShardingSpec(self.mesh, placements) for placements in key)
            self.plans[key] = plan_reshard(before, after)
        return self.plans[key]


def _saved(
    graph: OpGraph, phases: dict[Phase, list[Instruction]], kept: set[str]
) -> tuple[str, ...]:
    """What the backward pass reads and the forward pass made or was given."""
    made = {name for instruction in phases["forward"] for name in writes(instruction)}
    made |= set(inputs_of(graph, "forward"))
    read = {name for instruction in phases["backward"] for name in reads(instruction)}
    wanted = (made & read) - kept
    return tuple(value.name for value in graph.values if value.name in wanted)


def _with_frees(
    graph: OpGraph,
    phases: dict[Phase, list[Instruction]],
    kept: set[str],
    saved: tuple[str, ...],
    results: tuple[tuple[int, str], ...],
) -> tuple[tuple[Instruction, ...], ...]:
    """Every name is let go after its last reader, or at once where it has none."""
    returned = {
        phase: {name for at, name in results if graph.nodes[at].phase == phase}
        for phase in ("forward", "backward")
    }
    summed = {name for instruction in phases["update"] for name in reads(instruction)}
    parameters = set(names_of(graph, "parameter"))
    ends: dict[Phase, set[str]] = {
        "forward": {*kept, *saved, *returned["forward"]},
        "backward": {*kept, *returned["backward"]},
        "update": parameters | (kept - summed),
    }
    found = []
    for phase, keep in ends.items():
        last: dict[str, int] = {}
        instructions = phases[phase]
        for at, instruction in enumerate(instructions):
            for name in (*writes(instruction), *reads(instruction)):
                last[name] = at
        frees: dict[int, list[str]] = {}
        for name, at in last.items():
            if name not in keep:
                frees.setdefault(at, []).append(name)
        given = inputs_of(graph, phase)
        with_frees: list[Instruction] = [Free(name) for name in given if name not in {*last, *keep}]
        for at, instruction in enumerate(instructions):
            with_frees.append(instruction)
            with_frees += [Free(name) for name in frees.get(at, ())]
        found.append(tuple(with_frees))
    return tuple(found)
