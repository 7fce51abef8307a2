"""Small edits of a graph of aten operations whose nodes know the shapes of what they make."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import unset_fake_temporarily

aten = torch.ops.aten
PROVENANCE = ("origin", "partitioner_tag", "stack_trace")


class Editor:
    """Adds nodes to a graph, with the shapes of their results and the origin of another node.

    Args:
        fake_mode: the one the graph's ``meta["val"]`` belong to.
    """

    def __init__(self, graph_module: fx.GraphModule, fake_mode: FakeTensorMode) -> None:
        self.graph_module = graph_module
        self.graph = graph_module.graph
        self._fake_mode = fake_mode

    def add(
        self,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        before: fx.Node,
        like: fx.Node,
    ) -> fx.Node:
        """A call of ``target`` just before a node; it comes from where ``like`` comes from."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args, kwargs or {})
        node.meta = {key: like.meta[key] for key in PROVENANCE if key in like.meta}
        node.meta["val"] = self._value_of(node)
        return node

    def reshape(
        self, node: fx.Node, shape: Iterable[int], *, before: fx.Node, like: fx.Node
    ) -> fx.Node:
        """``node`` in another shape; ``node`` itself where it has that shape."""
        wanted = list(shape)
        if list(shape_of(node)) == wanted:
            return node
        return self.add(aten.reshape.default, (node, wanted), before=before, like=like)

    def permute(
        self, node: fx.Node, order: Iterable[int], *, before: fx.Node, like: fx.Node
    ) -> fx.Node:
        """``node`` with its dims in another order; itself where the order is the same."""
        wanted = list(order)
        if wanted == sorted(wanted):
            return node
        return self.add(aten.permute.default, (node, wanted), before=before, like=like)

    def replace(self, node: fx.Node, other: fx.Node) -> None:
        """Let all readers of ``node`` read ``other``, and take ``node`` out."""
        node.replace_all_uses_with(other)
        self.graph.erase_node(node)

    def drop_unused(self) -> None:
        """Take out what nothing reads."""
        self.graph.eliminate_dead_code(
            is_impure_node=lambda node: node.op in ("placeholder", "output")
        )

    def _value_of(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: one.meta["val"])
        with unset_fake_temporarily(), self._fake_mode, torch.no_grad():
            return node.target(*args, **kwargs)  # pyright: ignore[reportCallIssue]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Of the one tensor a node makes."""
    return tuple(int(size) for size in node.meta["val"].shape)


def argument(node: fx.Node, at: int) -> Any:
    """A positional argument of a call."""
    return node.args[at]


def is_call(node: Any, *targets: Any) -> bool:
    """Whether a node calls one of these."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_tensor(node: Any) -> bool:
    """Whether a value is a node that makes one tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), torch.Tensor)
