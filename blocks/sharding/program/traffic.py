"""What the collectives of a program send, rank by rank and to the byte. Needs no torch."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from blocks.sharding.collective_bytes import Collective, collective_bytes
from blocks.sharding.op_graph import OpNode, Phase, TensorValue
from blocks.sharding.placement import Replicate, Shard, run_of
from blocks.sharding.program.instruction import Compute, Reshard
from blocks.sharding.program.program import Program
from blocks.sharding.reshard_plan import Step, plan_reshard
from blocks.sharding.spec import ShardingSpec
from blocks.sharding.strategy import Strategy


class Traffic(NamedTuple):
    """What one rank sends by one kind of collective along one axis in one run of a phase.

    number: of collectives.
    bytes: sent, padding included.
    """

    phase: Phase
    collective: Collective
    axis: str
    number: int
    bytes: int


def step_bytes(step: Step, shape: Sequence[int], itemsize: int, rank: int) -> int:
    """Bytes that ``rank`` sends in a step; ``Step.bytes`` says what the busiest rank sends.

    Pieces of an all-to-all travel unpadded, those of other collectives padded to the longest.

    >>> from blocks.sharding.mesh import Mesh
    >>> cut = ShardingSpec.of(Mesh.of(tensor=2), tensor=Shard(0))
    >>> step = Step(cut, ShardingSpec.replicated(cut.mesh), "tensor")
    >>> step_bytes(step, (5, 4), 4, rank=1)
    48
    """
    mesh, axis = step.before.mesh, step.axis
    num_ranks = mesh.size(axis)
    sizes = list(step.before.replace(axis, Replicate()).local_shape(shape, rank))
    if step.collective in ("narrow", "mask"):
        return 0
    if step.collective == "all_reduce":
        return collective_bytes("all_reduce", math.prod(sizes), itemsize, num_ranks)
    if step.collective == "all_to_all":
        assert isinstance(step.source, Shard)
        assert isinstance(step.target, Shard)
        at = mesh.coordinate(rank, axis)
        whole = sizes[step.target.dim]
        sizes[step.source.dim] = run_of(sizes[step.source.dim], num_ranks, at).size
        sizes[step.target.dim] = whole - run_of(whole, num_ranks, at).size
        return math.prod(sizes) * itemsize
    cut = step.source if step.collective == "all_gather" else step.target
    assert isinstance(cut, Shard)
    sizes[cut.dim] = -(-sizes[cut.dim] // num_ranks)
    return (num_ranks - 1) * math.prod(sizes) * itemsize


def inner_reduces(
    node: OpNode,
    strategy: Strategy,
    outputs: Sequence[TensorValue],
    specs: Sequence[ShardingSpec],
    rank: int,
) -> list[tuple[str, int]]:
    """(axis, bytes) of the all-reduces that an operation does inside of itself: the largest of
    what the ranks along an axis found."""
    found = []
    mesh = specs[0].mesh if specs else None
    for at, choice in enumerate(strategy.choices):
        if mesh is None or choice < 0 or node.rule.factors[choice].kind != "max":
            continue
        for value, spec in zip(outputs, specs, strict=True):
            count = math.prod(spec.local_shape(value.shape, rank))
            size = mesh.sizes[at]
            sent = collective_bytes("all_reduce", count, value.itemsize, size)
            found.append((mesh.axes[at], sent))
    return found


def traffic_of(program: Program, phase: Phase, rank: int) -> tuple[Traffic, ...]:
    """What a rank sends in one run of a phase, by collective and axis, in the mesh's order."""
    sums: dict[tuple[Collective, str], tuple[int, int]] = {}

    def add(collective: Collective, axis: str, sent: int) -> None:
        number, total = sums.get((collective, axis), (0, 0))
        sums[collective, axis] = (number + 1, total + sent)

    for collective, axis, sent in _sent(program, phase, rank):
        add(collective, axis, sent)
    order = program.mesh.axes.index
    return tuple(
        Traffic(phase, collective, axis, *sums[collective, axis])
        for collective, axis in sorted(sums, key=lambda key: (order(key[1]), key[0]))
    )


def _sent(program: Program, phase: Phase, rank: int) -> Iterable[tuple[Collective, str, int]]:
    graph, mesh = program.graph, program.mesh
    for instruction in program.phase(phase):
        if isinstance(instruction, Reshard):
            value = graph.values[instruction.value]
            for step in instruction.steps:
                alone = mesh.size(step.axis) == 1
                if step.collective not in ("narrow", "mask") and not alone:
                    sent = step_bytes(step, value.shape, value.itemsize, rank)
                    yield step.collective, step.axis, sent
        elif isinstance(instruction, Compute):
            node, strategy = graph.nodes[instruction.node], program.strategies[instruction.node]
            values = [graph.values[value] for value in node.outputs]
            specs = [ShardingSpec(mesh, placements) for placements in strategy.outputs]
            for axis, sent in inner_reduces(node, strategy, values, specs, rank):
                yield "all_reduce", axis, sent
            if itemsize := node.rule.gathered_itemsize:
                for step in plan_reshard(specs[0], ShardingSpec.replicated(mesh)):
                    if mesh.size(step.axis) > 1:
                        sent = step_bytes(step, values[0].shape, itemsize, rank)
                        yield step.collective, step.axis, sent
