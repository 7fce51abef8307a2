"""What moves elements or makes them from nothing: views, slices, joins, fills."""

import math
from typing import Any

from torch import fx

from blocks.sharding import OpRule, rules
from recipes.plan.trace.editing import argument, aten
from recipes.plan.trace.node_tensors import FIRST, Make, dim_of, whole_rule


def _slice(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.slice_rule(inputs[0], dim_of(node, 1))


def _slice_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.slice_rule(inputs[0], dim_of(node, 2))


def _select_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.select_backward_rule(outputs[0], dim_of(node, 2))


def _pad(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    pads: Any = argument(node, 1)
    rank = len(inputs[0])
    dims = [
        rank - 1 - at // 2 for at in range(0, len(pads), 2) if pads[at] != 0 or pads[at + 1] != 0
    ]
    value = argument(node, 2) if len(node.args) > 2 else node.kwargs.get("value", 0)
    return rules.pad_rule(inputs[0], dims, zeros=not value)


def _split(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.split_rule(inputs[0], dim_of(node, 2), len(outputs))


def _repeat(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    touched = [
        dim
        for dim, size in enumerate(outputs[0])
        if len(inputs[0]) != len(outputs[0]) or inputs[0][dim] != size
    ]
    if len(inputs[0]) != len(outputs[0]):
        return whole_rule(inputs, outputs)
    return rules.along_dim_rule(inputs[0], touched, linear=[(0,)])


def _full(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.full_rule(outputs[0])


def _arange(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.arange_rule(math.prod(outputs[0])) if outputs[0] else whole_rule(inputs, outputs)


LAYOUTS: dict[Any, Make] = {
    aten.reshape.default: lambda node, i, o: rules.view_rule(i[0], o[0]),
    aten.permute.default: lambda node, i, o: rules.permute_rule(i[0], argument(node, 1)),
    aten.expand.default: lambda node, i, o: rules.expand_rule(i[0], o[0]),
    aten.slice.Tensor: _slice,
    aten.slice_backward.default: _slice_backward,
    aten.select.int: lambda node, i, o: rules.select_rule(i[0], dim_of(node, 1)),
    aten.select_backward.default: _select_backward,
    aten.slice_scatter.default: lambda node, i, o: rules.slice_scatter_rule(i[0], dim_of(node, 2)),
    aten.select_scatter.default: lambda node, i, o: rules.select_scatter_rule(
        i[0], dim_of(node, 2)
    ),
    aten.flip.default: lambda node, i, o: rules.along_dim_rule(
        i[0],
        argument(node, 1),
        linear=FIRST,
    ),
    aten.roll.default: lambda node, i, o: rules.along_dim_rule(
        i[0],
        argument(node, 2) if len(node.args) > 2 else range(len(i[0])),
        linear=FIRST,
    ),
    aten.constant_pad_nd.default: _pad,
    aten.cat.default: lambda node, i, o: rules.cat_rule(i, dim_of(node, 1)),
    aten.stack.default: lambda node, i, o: rules.stack_rule(i, dim_of(node, 1)),
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.unbind.int: lambda node, i, o: rules.unbind_rule(i[0], dim_of(node, 1)),
    aten.tril.default: lambda node, i, o: rules.along_dim_rule(i[0], [-1, -2], linear=FIRST),
    aten.triu.default: lambda node, i, o: rules.along_dim_rule(i[0], [-1, -2], linear=FIRST),
    aten.repeat.default: _repeat,
    aten.full.default: _full,
    aten.scalar_tensor.default: _full,
    aten.arange.default: _arange,
    aten.arange.start: _arange,
    aten.arange.start_step: _arange,
}
