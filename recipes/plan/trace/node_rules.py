"""The rule of a call of an aten operation: which function of ``blocks.sharding.rules`` it has."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from blocks.sharding import OpRule, rules
from recipes.plan.trace import batch_norm as batch_norm
from recipes.plan.trace import experts as experts
from recipes.plan.trace.convolutions import (
    conv_input_gradient,
    conv_weight_gradient,
    convolution,
)
from recipes.plan.trace.editing import argument, aten, is_call

Make = Callable[[fx.Node, list[tuple[int, ...]], list[tuple[int, ...]]], OpRule]
"""From the call, the shapes of its tensor arguments and those of its results."""


def inputs_of(node: fx.Node) -> tuple[fx.Node, ...]:
    """The tensors among the arguments of a call, in order, with repetitions."""
    found: list[fx.Node] = []
    fx.map_arg((node.args, node.kwargs), found.append)
    return tuple(found)


def results_of(node: fx.Node) -> list[Any]:
    """The (fake) tensors a call makes."""
    value = node.meta["val"]
    return [value] if isinstance(value, torch.Tensor) else [one for one in value if one is not None]


def rule_of_node(node: fx.Node) -> OpRule:
    """The rule of one call. What is not known is whole: it is done by every rank alike."""
    inputs = [tuple(one.meta["val"].shape) for one in inputs_of(node)]
    outputs = [tuple(one.shape) for one in results_of(node)]
    make = _TABLE.get(node.target)
    if make is not None:
        return _with_sums_of_numbers(node, make(node, inputs, outputs))
    if _is_pointwise(node.target) and inputs and _broadcast(inputs, outputs):
        linear = _linear(node)
        rule = rules.elementwise_rule(inputs, linear=linear, num_outputs=len(outputs))
        return _with_sums_of_numbers(node, rule)
    return whole_rule(inputs, outputs)


def _with_sums_of_numbers(node: fx.Node, rule: OpRule) -> OpRule:
    """Without addends of whole numbers, which wrap around, and of truth values."""
    inputs = [one.meta["val"].dtype.is_floating_point for one in inputs_of(node)]
    made = [one.dtype for one in results_of(node)]
    linear = rule.linear if all(dtype.is_floating_point for dtype in made) else ()
    linear = tuple(together for together in linear if all(inputs[at] for at in together))
    factors = tuple(
        dataclasses.replace(factor, kind="whole")
        if factor.kind == "sum" and torch.bool in made
        else factor
        for factor in rule.factors
    )
    return dataclasses.replace(rule, factors=factors, linear=linear)


def whole_rule(inputs: Sequence[Sequence[int]], outputs: Sequence[Sequence[int]]) -> OpRule:
    """Nothing can be cut."""
    return OpRule(
        (),
        tuple((None,) * len(one) for one in inputs),
        tuple((None,) * len(one) for one in outputs),
    )


def _is_pointwise(target: Any) -> bool:
    tags = getattr(target, "tags", ())
    return torch.Tag.pointwise in tags or target in _POINTWISE


def _broadcast(inputs: list[tuple[int, ...]], outputs: list[tuple[int, ...]]) -> bool:
    try:
        together = tuple(torch.broadcast_shapes(*inputs))
    except RuntimeError:
        return False
    return all(one == together for one in outputs)


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
_FIRST = ((0,),)


def _linear(node: fx.Node) -> tuple[tuple[int, ...], ...]:
    """Which inputs of an elementwise operation may be addends together."""
    target, count = node.target, len(inputs_of(node))
    if target in (aten.add.Tensor, aten.sub.Tensor):
        return _BOTH if count == 2 else ()
    if target == aten.mul.Tensor:
        return _EACH if count == 2 else _FIRST
    if target == aten.div.Tensor:
        return _FIRST
    if target in (aten.neg.default, aten.mul.Scalar, aten.div.Scalar, aten.clone.default):
        return _FIRST
    if target == aten._to_copy.default:
        both = (argument(node, 0).meta["val"], node.meta["val"])
        floating = [one.is_floating_point() for one in both]
        return _FIRST if all(floating) else ()
    if target == aten.where.self:
        zeros = [is_zero(one) for one in node.args[1:3]]
        return ((1, 2),) if not any(zeros) else ((2,),) if zeros[0] else ((1,),)
    if target == aten.masked_fill.Scalar:
        return _FIRST if argument(node, 2) == 0 else ()
    if "_backward" in str(target):
        return _FIRST  # the gradient comes first
    return ()


def is_zero(node: Any) -> bool:
    """Whether a tensor is known to be zeros."""
    if is_call(node, aten.scalar_tensor.default):
        return argument(node, 0) == 0
    return is_call(node, aten.full.default) and argument(node, 1) == 0


def _einsum(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    equation: Any = argument(node, 0)
    terms, _, result = equation.partition("->")
    one, two = terms.split(",")
    names: dict[str, str] = {}
    numbers: dict[str, int] = {}
    for letter in dict.fromkeys((*one, *two)):
        here = (letter in one, letter in two, letter in result)
        role = {
            (True, True, True): "batch",
            (True, False, True): "row",
            (False, True, True): "column",
        }.get(here, "contraction")
        number = numbers[role] = numbers.get(role, -1) + 1
        names[letter] = f"{role}{number}" if number else role
    return rules.einsum_rule(equation, inputs, names=names)


def _attention(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    mask = inputs[3] if len(inputs) > 3 else None
    return rules.attention_rule(inputs[0], inputs[1], inputs[2], mask=mask)


def _attention_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    mask = inputs[6] if len(inputs) > 6 else None
    return rules.attention_backward_rule(inputs[1], inputs[2], inputs[3], mask=mask)


def _dims(node: fx.Node, at: int = 1) -> list[int] | None:
    given: Any = node.args[at] if len(node.args) > at else node.kwargs.get("dim")
    if given is None or given == []:
        return None
    return [given] if isinstance(given, int) else list(given)


def _keepdim(node: fx.Node) -> bool:
    return bool(argument(node, 2) if len(node.args) > 2 else node.kwargs.get("keepdim", False))


def _reduce(kind: rules.Reduction) -> Make:
    def make(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
        itemsize = results_of(node)[0].element_size()
        return rules.reduce_rule(
            inputs[0], _dims(node), keepdim=_keepdim(node), kind=kind, itemsize=itemsize,
            num_outputs=len(outputs),
        )  # fmt: skip

    return make


def _reduce_all(kind: rules.Reduction) -> Make:
    return lambda node, inputs, outputs: rules.reduce_rule(
        inputs[0], None, kind=kind, itemsize=results_of(node)[0].element_size()
    )


def _dim(node: fx.Node, at: int, default: int = 0) -> int:
    given: Any = node.args[at] if len(node.args) > at else node.kwargs.get("dim", default)
    return given


def _slice(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.slice_rule(inputs[0], _dim(node, 1))


def _slice_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.slice_rule(inputs[0], _dim(node, 2))


def _pad(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    pads: Any = argument(node, 1)
    rank = len(inputs[0])
    dims = [
        rank - 1 - at // 2 for at in range(0, len(pads), 2) if pads[at] != 0 or pads[at + 1] != 0
    ]
    value = argument(node, 2) if len(node.args) > 2 else node.kwargs.get("value", 0)
    return rules.pad_rule(inputs[0], dims, zeros=not value)


def _softmax(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.softmax_rule(inputs[0], _dim(node, 1))


def _softmax_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.softmax_backward_rule(inputs[0], _dim(node, 2))


def _sorted(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    at = 2 if node.target in (aten.topk.default, aten.sort.stable) else 1
    return rules.along_dim_rule(inputs[0], [_dim(node, at, -1)], num_outputs=len(outputs))


def _split(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.split_rule(inputs[0], _dim(node, 2), len(outputs))


def _embedding_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.embedding_backward_rule(inputs[0], outputs[0][0])


def _scatter(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    zeros = is_zero(argument(node, 0))
    if len(inputs) == 2:  # of one value
        return rules.along_dim_rule(inputs[0], range(len(inputs[0])), num_inputs=2)
    return rules.scatter_rule(inputs[0], inputs[1], _dim(node, 1), onto_zeros=zeros)


def _index(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    places: Any = argument(node, 1)
    at = [dim for dim, index in enumerate(places) if index is not None]
    indices = inputs[1:]
    if any(one.meta["val"].dtype == torch.bool for one in places if one is not None):
        return whole_rule(inputs, outputs)
    if len(at) == 1:
        return rules.index_rule(inputs[0], indices[0], at[0])
    shapes = iter(indices)
    every = [next(shapes) if index is not None else None for index in places]
    return rules.index_many_rule(inputs[0], every, outputs[0])


def _index_put(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    places: Any = argument(node, 1)
    adds = len(node.args) > 3 and bool(argument(node, 3))
    at = [dim for dim, index in enumerate(places) if index is not None]
    plain = len(at) == 1 and places[at[0]].meta["val"].dtype != torch.bool
    rest = [size for dim, size in enumerate(inputs[0]) if dim not in at]
    if plain and adds and len(inputs) == 3 and len(inputs[2]) == len(inputs[1]) + len(rest):
        zeros = is_zero(argument(node, 0))
        return rules.index_add_rule(inputs[0], inputs[1], at[0], onto_zeros=zeros)
    return whole_rule(inputs, outputs)


def _layer_norm(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    normalized: Any = argument(node, 1)
    return rules.layer_norm_rule(inputs[0], len(normalized), num_weights=len(inputs) - 1)


def _layer_norm_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    normalized: Any = argument(node, 2)
    weights = len(inputs) - 4
    if weights == len(outputs) - 1:
        return rules.layer_norm_backward_rule(inputs[0], len(normalized), num_weights=weights)
    return _layer_norm_backward_of(inputs, outputs, len(normalized))


def _layer_norm_backward_of(inputs: Any, outputs: Any, count: int) -> OpRule:
    """With fewer weights, or fewer gradients asked for."""
    rows, channels = len(inputs[0]) - count, inputs[0][len(inputs[0]) - count :]
    names = [f"dim{at}" for at in range(len(inputs[0]))]

    def along(shape: tuple[int, ...]) -> str:
        if shape == tuple(inputs[0]):
            return " ".join(names)
        if shape == tuple(channels):
            return " ".join(names[rows:])
        return " ".join([*names[:rows], *["_"] * (len(shape) - rows)])

    sizes = dict(zip(names, inputs[0], strict=True))
    return rules.rule_of(
        sizes, [along(one) for one in inputs], [along(one) for one in outputs],
        linear=[(0,)], whole=" ".join(names[rows:]),
    )  # fmt: skip


def _conv(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.conv_rule(inputs[0], inputs[1], outputs[0], **_conv_options(node))


def _conv_input_gradient(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    grad, weight = inputs
    return rules.conv_input_gradient_rule(outputs[0], weight, grad, **_conv_options(node))


def _conv_weight_gradient(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    grad, x = inputs
    return rules.conv_weight_gradient_rule(x, outputs[0], grad, **_conv_options(node))


def _conv_options(node: fx.Node) -> dict[str, Any]:
    geometry: Any = argument(node, 2)
    return {"groups": geometry.groups, "transposed": geometry.transposed}


def _pool(linear: Sequence[Sequence[int]] = ()) -> Make:
    return lambda node, inputs, outputs: rules.pool_rule(inputs, outputs, linear=linear)


def _full(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.full_rule(outputs[0])


def _group_norm(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    groups: Any = argument(node, 6)
    return rules.group_norm_rule(inputs[0], groups, num_weights=len(inputs) - 1)


def _group_norm_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    groups: Any = argument(node, 8)
    return rules.group_norm_backward_rule(
        inputs[0], groups, num_weights=len(inputs) - 4, num_gradients=len(outputs) - 1
    )


def _select_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.select_backward_rule(outputs[0], _dim(node, 2))


def _repeat(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    touched = [
        dim
        for dim, size in enumerate(outputs[0])
        if len(inputs[0]) != len(outputs[0]) or inputs[0][dim] != size
    ]
    if len(inputs[0]) != len(outputs[0]):
        return whole_rule(inputs, outputs)
    return rules.along_dim_rule(inputs[0], touched, linear=[(0,)])


def _arange(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    return rules.arange_rule(math.prod(outputs[0])) if outputs[0] else whole_rule(inputs, outputs)


def _channels(*inputs: str, outputs: tuple[str, ...], linear: Any = ()) -> Make:
    """Of a part of a batch norm: tensors like x (``x``), or of one value a channel (``c``)."""

    def make(node: fx.Node, shapes: Any, made: Any) -> OpRule:
        x = next(shape for shape, kind in zip(shapes, inputs, strict=True) if kind == "x")
        names = ["batch", "channel", *(f"place{at}" for at in range(len(x) - 2))]
        along = {"x": " ".join(names), "c": "channel"}
        return rules.rule_of(
            dict(zip(names, x, strict=True)),
            [along[kind] for kind in inputs],
            [along[kind] for kind in outputs],
            linear=linear,
        )

    return make


def _experts(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    """(x, chosen, weights, numbers, gate_up, down) to the output."""
    return _expert_rule(inputs, ["token _"], flops=6)


def _experts_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    """The same after the gradient of the output, to those of x, weights and both matrices."""
    gradients = ["token _", "token _", "expert _ _", "expert _ _"]
    return _expert_rule(inputs, gradients, flops=16)


def _expert_rule(inputs: Any, outputs: list[str], flops: int) -> OpRule:
    (tokens, choices), (count, channels, inner) = inputs[-4], inputs[-1]
    along = ["token _", "token _", "token _", "expert", "expert _ _", "expert _ _"]
    return rules.rule_of(
        {"token": tokens, "expert": count},
        along if len(inputs) == 6 else ["token _", *along],
        outputs,
        linear=((2,), (5,)) if len(inputs) == 6 else ((0,),),
        flops_per_point=-(-flops * choices * channels * inner // count),
    )


_own = torch.ops.llm_blocks
_TABLE: dict[Any, Make] = {
    _own.experts.default: _experts,
    _own.experts_backward.default: _experts_backward,
    _own.centred_squares.default: _channels("x", "c", outputs=("c",)),
    _own.normalise_channels.default: _channels("x", *"cccc", outputs=("x",)),
    _own.channel_gradients.default: _channels("x", "x", *"cc", outputs=("c", "c"), linear=_FIRST),
    _own.normalised_gradient.default: _channels(
        "x", "x", *"ccccc", outputs=("x",), linear=((0, 5, 6),)
    ),
    aten.einsum.default: _einsum,
    aten.reshape.default: lambda node, i, o: rules.view_rule(i[0], o[0]),
    aten.permute.default: lambda node, i, o: rules.permute_rule(i[0], argument(node, 1)),
    aten.expand.default: lambda node, i, o: rules.expand_rule(i[0], o[0]),
    aten.sum.dim_IntList: _reduce("sum"),
    aten.sum.default: _reduce_all("sum"),
    aten.amax.default: _reduce("max"),
    aten.amin.default: _reduce("max"),
    aten.any.dim: _reduce("max"),
    aten.any.default: _reduce_all("max"),
    aten.max.default: _reduce_all("max"),
    aten.prod.dim_int: _reduce("whole"),
    aten.argmax.default: _reduce("whole"),
    aten.max.dim: _reduce("whole"),
    aten.logsumexp.default: _reduce("whole"),
    aten.slice.Tensor: _slice,
    aten.slice_backward.default: _slice_backward,
    aten.select.int: lambda node, i, o: rules.select_rule(i[0], _dim(node, 1)),
    aten.select_backward.default: _select_backward,
    aten.slice_scatter.default: lambda node, i, o: rules.slice_scatter_rule(i[0], _dim(node, 2)),
    aten.select_scatter.default: lambda node, i, o: rules.select_scatter_rule(i[0], _dim(node, 2)),
    aten.flip.default: lambda node, i, o: rules.along_dim_rule(
        i[0],
        argument(node, 1),
        linear=_FIRST,
    ),
    aten.roll.default: lambda node, i, o: rules.along_dim_rule(
        i[0],
        argument(node, 2) if len(node.args) > 2 else range(len(i[0])),
        linear=_FIRST,
    ),
    aten.constant_pad_nd.default: _pad,
    aten.cat.default: lambda node, i, o: rules.cat_rule(i, _dim(node, 1)),
    aten.stack.default: lambda node, i, o: rules.stack_rule(i, _dim(node, 1)),
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.unbind.int: lambda node, i, o: rules.unbind_rule(i[0], _dim(node, 1)),
    aten.cumsum.default: lambda node, i, o: rules.cumsum_rule(i[0], _dim(node, 1)),
    aten._softmax.default: _softmax,
    aten._safe_softmax.default: _softmax,
    aten._log_softmax.default: _softmax,
    aten._softmax_backward_data.default: _softmax_backward,
    aten._log_softmax_backward_data.default: _softmax_backward,
    aten.topk.default: _sorted,
    aten.sort.default: _sorted,
    aten.sort.stable: _sorted,
    aten.tril.default: lambda node, i, o: rules.along_dim_rule(i[0], [-1, -2], linear=_FIRST),
    aten.triu.default: lambda node, i, o: rules.along_dim_rule(i[0], [-1, -2], linear=_FIRST),
    aten.repeat.default: _repeat,
    aten.embedding.default: lambda node, i, o: rules.embedding_rule(*i),
    aten.embedding_dense_backward.default: _embedding_backward,
    aten.gather.default: lambda node, i, o: rules.gather_rule(i[0], i[1], _dim(node, 1)),
    aten.scatter.src: _scatter,
    aten.scatter_add.default: _scatter,
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
    convolution: _conv,
    conv_input_gradient: _conv_input_gradient,
    conv_weight_gradient: _conv_weight_gradient,
    aten.max_pool2d_with_indices.default: _pool(),
    aten.max_pool2d_with_indices_backward.default: _pool([(0,)]),
    aten.avg_pool2d.default: _pool([(0,)]),
    aten.avg_pool2d_backward.default: _pool([(0,)]),
    aten._adaptive_avg_pool2d.default: _pool([(0,)]),
    aten._adaptive_avg_pool2d_backward.default: _pool([(0,)]),
    aten.upsample_nearest2d.default: _pool([(0,)]),
    aten.upsample_bilinear2d.default: _pool([(0,)]),
    aten.full.default: _full,
    aten.scalar_tensor.default: _full,
    aten.arange.default: _arange,
    aten.arange.start: _arange,
    aten.arange.start_step: _arange,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
}
