"""``NodeLabels``: the strategies an operation may choose from, with what each costs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blocks.sharding.cost.cost_model import CostModel
from blocks.sharding.cost.step_bytes import QuickStep, reshard_steps
from blocks.sharding.intra_op.problem import Table
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_graph import OpNode, TensorValue
from blocks.sharding.op_rule import OpRule
from blocks.sharding.placement import Placement, Replicate, Shard
from blocks.sharding.strategy import Strategy, local_sizes


class NodeLabels(NamedTuple):
    """The strategies of a node.

    strategies: in the order of the labels.
    seconds: of one rank's part, collectives inside of the operation included; not yet divided by
        the number of microbatches where it runs once a step.
    fixed_bytes: what a rank holds of it throughout: parameter, gradient or optimizer state.
    flight_bytes: what a rank holds of it for every microbatch in flight: saved activations.
    """

    strategies: tuple[Strategy, ...]
    seconds: Table
    fixed_bytes: Table
    flight_bytes: Table


class InnerReduce(NamedTuple):
    """An all-reduce inside of an operation: the largest of candidates, or a statistic.

    num_bytes: of what every rank along the axis has before it.
    """

    axis: str
    num_bytes: int


def local_elements(shape: Sequence[int], placements: Sequence[Placement], mesh: Mesh) -> int:
    """Elements that the rank with the longest parts holds.

    >>> from blocks.sharding.placement import Shard
    >>> local_elements((5, 4), (Shard(0), Shard(0)), Mesh.of(data=2, tensor=2))
    8
    """
    sizes = list(shape)
    for placement, num_ranks in zip(placements, mesh.sizes, strict=True):
        if isinstance(placement, Shard):
            sizes[placement.dim] = -(-sizes[placement.dim] // num_ranks)
    return math.prod(sizes)


def inner_reduces(
    rule: OpRule, strategy: Strategy, outputs: Sequence[TensorValue], mesh: Mesh
) -> tuple[InnerReduce, ...]:
    """The all-reduces that an operation does inside of itself under a strategy.

    Where a factor of kind ``max`` is cut, one for each output that lacks it; where another is, one
    of its ``inner_bytes``.
    """
    found = []
    for axis, choice in zip(mesh.axes, strategy.choices, strict=True):
        if choice < 0:
            continue
        factor = rule.factors[choice]
        if factor.kind == "max":
            for dims, placements, value in zip(
                rule.outputs, strategy.outputs, outputs, strict=True
            ):
                if choice not in dims:
                    held = local_elements(value.shape, placements, mesh)
                    found.append(InnerReduce(axis, held * value.itemsize))
        elif factor.inner_bytes:
            found.append(InnerReduce(axis, factor.inner_bytes))
    return tuple(found)


def inner_gathers(rule: OpRule, strategy: Strategy, mesh: Mesh) -> tuple[QuickStep, ...]:
    """The collectives in which an operation gathers what lies as its first output; elements have
    ``rule.gathered_itemsize`` bytes."""
    if not rule.gathered_itemsize:
        return ()
    return reshard_steps(mesh, strategy.outputs[0], (Replicate(),) * len(mesh.axes))


def node_seconds(
    node: OpNode, values: Sequence[TensorValue], strategy: Strategy, mesh: Mesh, cost: CostModel
) -> float:
    """One rank's part of an operation, with the collectives inside of it.

    values: those of the graph. Places where tensors enter or leave take no time, nor do views.
    """
    outputs = [values[at] for at in node.outputs]
    if node.role in ("input", "parameter", "output") or is_view(outputs):
        return 0.0
    touched = touched_bytes(node, values, strategy, mesh)
    dtype = outputs[0].dtype if outputs else "float32"
    sizes = local_sizes(node.rule, strategy, mesh, mesh.ranks[0])
    inner = sum(
        cost.collective_s("all_reduce", reduce.num_bytes, reduce.axis)
        for reduce in inner_reduces(node.rule, strategy, outputs, mesh)
    )
    if itemsize := node.rule.gathered_itemsize:
        lies, whole = strategy.outputs[0], (Replicate(),) * len(mesh.axes)
        inner += cost.reshard_s(outputs[0].shape, itemsize, lies, whole)
    return float(cost.compute_s(node.rule, sizes, touched, dtype) + inner)


def is_view(outputs: Sequence[TensorValue]) -> bool:
    """Whether an operation moves nothing: all it makes are views."""
    return bool(outputs) and all(value.storage == "view" for value in outputs)


def touched_bytes(
    node: OpNode, values: Sequence[TensorValue], strategy: Strategy, mesh: Mesh
) -> int:
    """What a rank reads from memory and writes to it."""
    read = [(at, how) for at, how in zip(node.inputs, strategy.inputs, strict=True)]
    written = [(at, how) for at, how in zip(node.outputs, strategy.outputs, strict=True)]
    moved = [(values[at], how) for at, how in read if values[at].storage != "none"]
    moved += [(values[at], how) for at, how in written if values[at].storage == "own"]
    return sum(local_elements(v.shape, how, mesh) * v.itemsize for v, how in moved)


def node_bytes(
    node: OpNode,
    values: Sequence[TensorValue],
    saved: frozenset[int],
    strategy: Strategy,
    mesh: Mesh,
    state_bytes: int | float,
) -> tuple[float, float]:
    """What a rank holds of a node: throughout, and for every microbatch in flight.

    saved: values that the backward pass reads.
    state_bytes: of the optimizer, for an element of a parameter.
    """
    fixed, flight = 0.0, 0.0
    for at, placements in zip(node.outputs, strategy.outputs, strict=True):
        value = values[at]
        held = local_elements(value.shape, placements, mesh)
        if node.role == "update":
            fixed += held * state_bytes
        elif node.role in ("parameter", "accumulate"):
            fixed += held * value.itemsize
        elif at in saved and value.storage != "none":
            flight += held * value.itemsize
    return fixed, flight


def label_node(
    node: OpNode,
    values: Sequence[TensorValue],
    saved: frozenset[int],
    strategies: Sequence[Strategy],
    mesh: Mesh,
    cost: CostModel,
    state_bytes: int | float,
) -> NodeLabels:
    """Costs of the strategies of a node; strategies that may not be chosen are left out."""
    found = []
    for strategy in strategies:
        seconds = node_seconds(node, values, strategy, mesh, cost)
        if math.isfinite(seconds):
            held = node_bytes(node, values, saved, strategy, mesh, state_bytes)
            found.append((strategy, seconds, *held))
    kept, seconds, fixed, flight = zip(*found, strict=True) if found else ((), (), (), ())
    as_table = lambda numbers: np.array(numbers, dtype=np.float64)  # noqa: E731
    return NodeLabels(tuple(kept), as_table(seconds), as_table(fixed), as_table(flight))
