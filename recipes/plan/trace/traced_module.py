"""``TracedModule``: a training step of a module, as a graph to plan with and a graph to run."""

import dataclasses
from collections.abc import Mapping

from torch import fx

from blocks._checks import check
from blocks.sharding import OpGraph, OpNode


@dataclasses.dataclass(frozen=True)
class TracedOp:
    """The calls that a node of the ``OpGraph`` stands for.

    call: of an aten operation; all tensors among its arguments, flattened in order, are
        ``inputs``.
    inputs: for every input of the node the fx node that makes it.
    outputs: for every output of the node the fx node whose value it is: ``call`` itself, or the
        ``getitem`` behind it where the operation makes several; None where nobody reads it.
    """

    call: fx.Node
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node | None, ...]

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        """The call and what takes its results apart, in order."""
        taken = [node for node in self.outputs if node is not None and node is not self.call]
        return (self.call, *taken)


@dataclasses.dataclass(frozen=True)
class TracedModule:
    """The loss and the gradients of a module.

    Every node of ``graph_module`` but placeholders, ``getitem`` and the output is the call of
    exactly one node of ``graph``, and in the same order.

    graph: what planners read.
    graph_module: the joint graph that is run; every placeholder has its ``Place`` in
        ``meta["place"]``, the output node a tuple of them, one for each of its arguments.
    ops: by name of a node of role ``op``, what it stands for.
    placeholders: by name of a node of role ``input`` or ``parameter``, its placeholder.
    params: by name of a parameter the index of its value in ``graph.values``.
    inputs: for every tensor argument, in order of ``(args, kwargs)`` flattened, its node's name.
    block_kinds: for every repeated block (``OpNode.block``) which kind it is: blocks of a kind
        have the same operations on the same shapes, node by node in the order of the graph.
    fingerprint: of the graph; equal for equal modules and shapes.
    """

    graph: OpGraph
    graph_module: fx.GraphModule
    ops: Mapping[str, TracedOp]
    placeholders: Mapping[str, fx.Node]
    params: Mapping[str, int]
    inputs: tuple[str, ...]
    block_kinds: tuple[int, ...]
    fingerprint: str

    @property
    def loss(self) -> int:
        """The index of the loss in ``graph.values``."""
        return next(n.inputs[0] for n in self.graph.nodes if n.op == "loss")

    def block_nodes(self, block: int) -> tuple[OpNode, ...]:
        """The nodes of a repeated block, forward and backward."""
        return tuple(node for node in self.graph.nodes if node.block == block)

    def check_invariants(self) -> None:
        """Assert that graph and joint graph tell of the same step."""
        order = {node: at for at, node in enumerate(self.graph_module.graph.nodes)}
        names = [node.name for node in self.graph.nodes if node.role == "op"]
        check(set(names) == set(self.ops), "ops", "the nodes of role op", len(self.ops))
        called = [order[self.ops[name].call] for name in names]
        check(called == sorted(called), "ops", "in the order of the joint graph", "another")
        made: dict[int, fx.Node | None] = {}
        for node in self.graph.nodes:
            if node.role in ("input", "parameter"):
                made[node.outputs[0]] = self.placeholders[node.name]
            elif node.role == "op":
                op = self.ops[node.name]
                read = tuple(made[value] for value in node.inputs)
                check(read == op.inputs, f"inputs of {node.name}", op.inputs, read)
                made.update(zip(node.outputs, op.outputs, strict=True))
        calls = [node for node in order if node.op == "call_function"]
        stands = {node for op in self.ops.values() for node in op.nodes}
        left = [node.name for node in calls if node not in stands]
        check(not left, "joint graph", "every call in an op", left[:5])
