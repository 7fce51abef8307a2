"""What rules of calls ask of a call: its tensors, dims and zeros."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from blocks.sharding import OpRule
from recipes.plan.trace.editing import argument, aten, is_call

Make = Callable[[fx.Node, list[tuple[int, ...]], list[tuple[int, ...]]], OpRule]
"""From the call, the shapes of its tensor arguments and those of its results."""

FIRST = ((0,),)
"""The first input may be addends alone."""


def inputs_of(node: fx.Node) -> tuple[fx.Node, ...]:
    """The tensors among the arguments of a call, in order, with repetitions."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return tuple(found)


def results_of(node: fx.Node) -> list[Any]:
    """The (fake) tensors a call makes."""
    value = node.meta["val"]
    return [value] if isinstance(value, torch.Tensor) else [one for one in value if one is not None]


def whole_rule(inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> OpRule:
    """Nothing can be cut."""
    return OpRule(
        (),
        tuple((None,) * len(one) for one in inputs),
        tuple((None,) * len(one) for one in outputs),
    )


def is_zero(node: Any) -> bool:
    """Whether a tensor is known to be zeros."""
    if is_call(node, aten.scalar_tensor.default):
        return argument(node, 0) == 0
    return is_call(node, aten.full.default) and argument(node, 1) == 0


def dims_of(node: fx.Node, at: int = 1) -> list[int] | None:
    given: Any = node.args[at] if len(node.args) > at else node.kwargs.get("dim")
    if given is None or given == []:
        return None
    return [given] if isinstance(given, int) else list(given)


def keeps_dim(node: fx.Node) -> bool:
    return bool(argument(node, 2) if len(node.args) > 2 else node.kwargs.get("keepdim", False))


def dim_of(node: fx.Node, at: int, default: int = 0) -> int:
    given: Any = node.args[at] if len(node.args) > at else node.kwargs.get("dim", default)
    return given
