"""``scaled_trace``: a traced step for another number of rows, from those of two.

What ``scaled_graph`` does to the graph that is planned, done to the one that is run as well.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from blocks._checks import fail
from recipes.plan.layers.scaled_graph import scaled_graph
from recipes.plan.trace import TracedModule, TracedOp
from recipes.plan.trace.tracing import fingerprint_of


def scaled_trace(
    small: TracedModule, small_rows: int, large: TracedModule, large_rows: int, rows: int
) -> TracedModule:
    """The step of ``rows`` rows, with the operations that the given ones have.

    A trace of one row is another: its dims of size 1 are read as if they were not there, and
    broadcast. Planned with rows that others have, it is run as they are.

    Args:
        small, large: the same step of fewer and of more rows.

    Raises:
        ValueError: as ``scaled_graph``; numbers among the arguments of a call, too.
    """
    graph = scaled_graph(small.graph, small_rows, large.graph, large_rows, rows)
    scale = _Scale(small_rows, large_rows, rows)
    made: dict[fx.Node, fx.Node] = {}
    joint = fx.Graph()
    nodes = small.graph_module.graph.nodes, large.graph_module.graph.nodes
    for one, other in zip(*nodes, strict=True):
        args, kwargs = scale.arguments(one, other)
        args, kwargs = fx.map_arg((args, kwargs), made.__getitem__)  # pyright: ignore
        made[one] = joint.create_node(one.op, one.target, args, kwargs, name=one.name)
        made[one].meta = dict(one.meta)
        if "val" in one.meta:
            made[one].meta["val"] = scale.values(one.meta["val"], other.meta["val"])
    return dataclasses.replace(
        small,
        graph=graph,
        graph_module=fx.GraphModule(small.graph_module, joint),
        ops={name: _moved(op, made) for name, op in small.ops.items()},
        placeholders={name: made[node] for name, node in small.placeholders.items()},
        fingerprint=fingerprint_of(graph),
    )


def _moved(op: TracedOp, made: dict[fx.Node, fx.Node]) -> TracedOp:
    outputs = tuple(None if node is None else made[node] for node in op.outputs)
    return TracedOp(made[op.call], tuple(made[node] for node in op.inputs), outputs)


class _Scale:
    """From two numbers of rows to a third: sizes are affine in them, as are divisors."""

    def __init__(self, small_rows: int, large_rows: int, rows: int) -> None:
        self._rows = (small_rows, large_rows, rows)

    def arguments(self, one: fx.Node, other: fx.Node) -> Any:
        """Those of a call, with the nodes of ``one``."""
        given, spec = pytree.tree_flatten((one.args, one.kwargs))
        others, like = pytree.tree_flatten((other.args, other.kwargs))
        if (one.op, str(one.target), spec) != (other.op, str(other.target), like):
            raise fail("calls", "the same for every number of rows", (one.name, other.name))
        scaled = [self._argument(a, b) for a, b in zip(given, others, strict=True)]
        return pytree.tree_unflatten(scaled, spec)

    def values(self, one: Any, other: Any) -> Any:
        """What a call makes, as tensors without numbers."""
        made, spec = pytree.tree_flatten(one)
        others = pytree.tree_leaves(other)
        scaled = [self._value(a, b) for a, b in zip(made, others, strict=True)]
        return pytree.tree_unflatten(scaled, spec)

    def _argument(self, a: Any, b: Any) -> Any:
        if isinstance(a, fx.Node) or a == b:
            return a
        if isinstance(a, int) and isinstance(b, int):
            return self._size(a, b)
        if isinstance(a, float) and isinstance(b, float):
            return self._number(a, b)
        raise fail("arguments", "the same for every number of rows", (a, b))

    def _number(self, a: float, b: float) -> float:
        """A number of rows, one over it, or what batch norm scales a variance of all rows by."""
        if a.is_integer() and b.is_integer():
            return float(self._size(int(a), int(b)))
        if a and b and 1 / round(1 / a) == a and 1 / round(1 / b) == b:
            return 1 / self._size(round(1 / a), round(1 / b))
        return self._unbiased(a, b)

    def _unbiased(self, a: float, b: float) -> float:
        """``momentum * n / (n - 1)`` of n points, as many in every row."""
        few, more, rows = self._rows
        slope = (more / b - few / a) / (more - few)  # one over the momentum
        lost = few * (1 - 1 / (a * slope)) if slope else 0.0  # one over the points of a row
        points = round(1 / lost) if 0 < lost < 2 else 0
        if not points or abs(points * lost - 1) > 1e-6 or points * rows == 1:
            wanted = "numbers affine in the rows, or one over such"
            raise fail("arguments", wanted, (a, b), "plan microbatches of two rows or more")
        return points * rows / (points * rows - 1) / slope

    def _value(self, a: Any, b: Any) -> Any:
        if not isinstance(a, Tensor):
            return self._argument(a, b)
        shape = [self._size(x, y) for x, y in zip(a.shape, b.shape, strict=True)]
        with a.fake_mode:  # pyright: ignore
            return torch.empty(shape, dtype=a.dtype, device=a.device)

    def _size(self, a: int, b: int) -> int:
        few, more, rows = self._rows
        grown, rest = divmod((b - a) * (rows - few), more - few)
        if rest:
            raise fail("sizes", "affine in the rows of the batch", (a, b))
        return a + grown
