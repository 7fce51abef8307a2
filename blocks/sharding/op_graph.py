"""``OpGraph``: a training step as operations on tensors, with the rule of each. No torch."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

from blocks._checks import check, fail, reading
from blocks.sharding.op_rule import OpRule

Role = Literal["input", "parameter", "op", "accumulate", "update", "output"]
"""What a node is for:

input: a tensor of the batch, or a buffer; it may start in any placement;
parameter: a parameter as it lies between steps;
op: an operation of the forward or the backward pass;
accumulate: the sum of a parameter's gradients over the microbatches of a step;
update: the optimizer, from parameter and accumulated gradient to the new parameter, whose one
    output has to come to lie as the parameter did (``OpGraph.returns``);
output: what the caller gets: the loss.
"""

Phase = Literal["forward", "backward", "update"]
"""Updates run once a step, the others once a microbatch."""

Storage = Literal["own", "view", "none"]
"""Where the elements of a value are: in memory of its own, in that of the value it is a view of, or
nowhere, as what reads it computes them (what a compiler fuses)."""


ADD = "aten.add.Tensor"
"""The op of the nodes that add two tensors."""


@dataclasses.dataclass(frozen=True)
class TensorValue:
    """A tensor that a node makes.

    name: unique in the graph.
    shape: of the whole tensor.
    dtype: as torch names it, ``bfloat16``.
    itemsize: bytes of an element.
    storage: what making and reading it moves: a view is not written, but read; one without
        storage is neither. Placements and collectives are those of any other value.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    storage: Storage = "own"

    @property
    def num_bytes(self) -> int:
        """Of the whole tensor."""
        total = self.itemsize
        for size in self.shape:
            total *= size
        return total


@dataclasses.dataclass(frozen=True)
class OpNode:
    """An operation, or a place where tensors enter or leave.

    name: unique in the graph.
    op: what it computes, ``mm`` or ``aten.gelu.default``.
    role, phase: see there.
    inputs, outputs: indices into ``OpGraph.values``, in the order of the rule's.
    rule: how it may be cut.
    module: path of the module it came from, ``layers.3.mlp``.
    block: which of the repeated blocks of the model it is part of, -1 for none; the backward of
        an operation is in the block of its forward.
    source: file and line it was written at; empty where unknown.
    """

    name: str
    op: str
    role: Role
    phase: Phase
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rule: OpRule
    module: str = ""
    block: int = -1
    source: str = ""

    def __post_init__(self) -> None:
        check(self.role in get_args(Role), "role", get_args(Role), repr(self.role))
        check(self.phase in get_args(Phase), "phase", get_args(Phase), repr(self.phase))


@dataclasses.dataclass(frozen=True)
class OpGraph:
    """A training step of one microbatch, and the update, as data.

    Invariants, which the constructor checks:
    1. nodes are in the order they can run in: a node reads what earlier nodes made;
    2. every value is made by exactly one node;
    3. a node's tensors have the dims of its rule, and a dim with a factor is a multiple of the
       factor's size;
    4. ``returns`` leads from outputs of updates to parameters of the same shape.

    values, nodes: see there.
    returns: (value made by an update, value of the parameter it replaces).
    """

    values: tuple[TensorValue, ...]
    nodes: tuple[OpNode, ...]
    returns: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        made: set[int] = set()
        for node in self.nodes:
            early = set(node.inputs) - made
            check(not early, f"inputs of {node.name}", "values made before", sorted(early))
            twice = set(node.outputs) & made
            check(not twice, f"outputs of {node.name}", "values made nowhere else", sorted(twice))
            made.update(node.outputs)
            for values, rules in (
                (node.inputs, node.rule.inputs),
                (node.outputs, node.rule.outputs),
            ):
                check(len(values) == len(rules), f"tensors of {node.name}", len(rules), len(values))
                for value, dims in zip(values, rules, strict=True):
                    self._check_dims(node, self.values[value], dims)
        missing = set(range(len(self.values))) - made
        check(not missing, "values", "all made by a node", sorted(missing)[:5])
        for new, old in self.returns:
            same = self.values[new].shape == self.values[old].shape
            check(same, "returns", self.values[old], self.values[new])

    @staticmethod
    def _check_dims(node: OpNode, value: TensorValue, dims: tuple[int | None, ...]) -> None:
        if len(dims) != len(value.shape):
            raise fail(f"dims of {value.name} in {node.name}", value.shape, dims)
        for size, dim in zip(value.shape, dims, strict=True):
            if dim is not None and size % node.rule.factors[dim].size:
                raise fail(f"{value.name} in {node.name}", node.rule.factors[dim], value.shape)
            if dim is not None and size != (factor := node.rule.factors[dim]).size:
                even = factor.even or factor.kind == "whole"
                check(even, f"{factor} of {node.name}", f"even, for a dim of {size}", factor)

    @functools.cached_property
    def maker(self) -> tuple[int, ...]:
        """For every value the index of the node that makes it."""
        made = {value: at for at, node in enumerate(self.nodes) for value in node.outputs}
        return tuple(made[value] for value in range(len(self.values)))

    @functools.cached_property
    def readers(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For every value the (node, which of its inputs) that read it."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.values]
        for at, node in enumerate(self.nodes):
            for place, value in enumerate(node.inputs):
                found[value].append((at, place))
        return tuple(map(tuple, found))

    @functools.cached_property
    def saved(self) -> tuple[int, ...]:
        """Values of the forward pass that the backward pass reads: the activations, in order.

        Parameters and inputs are not among them.
        """
        kept = []
        for value, at in enumerate(self.maker):
            of_forward = self.nodes[at].role == "op" and self.nodes[at].phase == "forward"
            if of_forward and any(
                self.nodes[n].phase == "backward" for n, _ in self.readers[value]
            ):
                kept.append(value)
        return tuple(kept)

    @functools.cached_property
    def once_a_step(self) -> frozenset[int]:
        """Values of which a step needs one for all its microbatches: parameters, and gradients that
        nothing but accumulators reads, be it through additions: their sum does as well."""
        found: set[int] = set()
        for node in reversed(self.nodes):
            for value in node.outputs if node.role in ("parameter", "op") else ():
                readers = [self.nodes[at] for at, _ in self.readers[value]]
                summed = bool(readers) and all(
                    reader.role == "accumulate"
                    or (
                        reader.op == ADD
                        and reader.phase == "backward"
                        and len(reader.inputs) == 2
                        and reader.outputs[0] in found
                    )
                    for reader in readers
                )
                if node.role == "parameter" or summed:
                    found.add(value)
        return frozenset(found)

    def flops(self) -> int:
        """Of forward and backward of one microbatch, all ranks together, nothing done twice."""
        return sum(node.rule.flops() for node in self.nodes)

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        nodes = [
            {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
            | {"rule": node.rule.to_json()}
            for node in self.nodes
        ]
        values = [dataclasses.asdict(value) for value in self.values]
        return {"values": values, "nodes": nodes, "returns": [list(pair) for pair in self.returns]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "OpGraph":
        """
        Raises:
            ValueError: data that is no graph.
        """
        with reading("operation graph", data, cls):
            values = tuple(
                TensorValue(**{**value, "shape": tuple(value["shape"])}) for value in data["values"]
            )
            nodes = tuple(_node(node) for node in data["nodes"])
            return cls(values, nodes, tuple((new, old) for new, old in data["returns"]))


def _node(data: Mapping[str, Any]) -> OpNode:
    tuples = {name: tuple(data[name]) for name in ("inputs", "outputs")}
    return OpNode(**{**data, **tuples, "rule": OpRule.from_json(data["rule"])})
