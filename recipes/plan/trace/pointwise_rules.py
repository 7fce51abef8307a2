"""Elementwise operations: which they are, and which of their inputs may be addends."""

from typing import Any

import torch
from torch import fx

from recipes.plan.trace.editing import argument, aten
from recipes.plan.trace.node_tensors import FIRST, inputs_of, is_zero

_POINTWISE = (
    aten._to_copy.default,
    aten.clone.default,
    aten.native_dropout.default,
    aten.native_dropout_backward.default,
    aten.dropout.default,
    aten.bernoulli.p,
    aten.rand_like.default,
    aten.threshold_backward.default,
    aten.softplus_backward.default,
    aten.leaky_relu.default,
    aten.leaky_relu_backward.default,
    aten.elu_backward.default,
    aten.hardtanh_backward.default,
    aten.hardswish.default,
    aten.hardswish_backward.default,
    aten.hardsigmoid_backward.default,
    aten.mish_backward.default,
    aten.softshrink_backward.default,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.log_sigmoid_forward.default,
    aten.log_sigmoid_backward.default,
    aten.lerp.Scalar,
)
_BOTH = ((0, 1),)
_EACH = ((0,), (1,))


def is_pointwise(target: Any) -> bool:
    """Whether every element of the results is made of the same elements of the inputs."""
    tags = getattr(target, "tags", ())
    return torch.Tag.pointwise in tags or target in _POINTWISE


def is_broadcast(inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]) -> bool:
    """Whether all results have the shape that the inputs have together."""
    try:
        together = tuple(torch.broadcast_shapes(*inputs))
    except RuntimeError:
        return False
    return all(one == together for one in outputs)


def addends_of(node: fx.Node) -> tuple[tuple[int, ...], ...]:
    """Which inputs of an elementwise operation may be addends together."""
    target, count = node.target, len(inputs_of(node))
    if target in (aten.add.Tensor, aten.sub.Tensor):
        return _BOTH if count == 2 else ()
    if target == aten.mul.Tensor:
        return _EACH if count == 2 else FIRST
    if target == aten.div.Tensor:
        return FIRST
    if target in (aten.neg.default, aten.mul.Scalar, aten.div.Scalar, aten.clone.default):
        return FIRST
    if target == aten._to_copy.default:
        both = (argument(node, 0).meta["val"], node.meta["val"])
        floating = [one.is_floating_point() for one in both]
        return FIRST if all(floating) else ()
    if target == aten.where.self:
        zeros = [is_zero(one) for one in node.args[1:3]]
        return ((1, 2),) if not any(zeros) else ((2,),) if zeros[0] else ((1,),)
    if target == aten.masked_fill.Scalar:
        return FIRST if argument(node, 2) == 0 else ()
    if "_backward" in str(target):
        return FIRST  # the gradient comes first
    return ()
