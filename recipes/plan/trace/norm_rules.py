"""Norms kept whole, and the parts of a batch norm."""

from typing import Any

import torch
from torch import fx

from blocks.sharding import OpRule, rules
from recipes.plan.trace import batch_norm as batch_norm  # registers operations
from recipes.plan.trace.editing import argument, aten
from recipes.plan.trace.node_tensors import FIRST, Make


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


def _group_norm(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    groups: Any = argument(node, 6)
    return rules.group_norm_rule(inputs[0], groups, num_weights=len(inputs) - 1)


def _group_norm_backward(node: fx.Node, inputs: Any, outputs: Any) -> OpRule:
    groups: Any = argument(node, 8)
    return rules.group_norm_backward_rule(
        inputs[0], groups, num_weights=len(inputs) - 4, num_gradients=len(outputs) - 1
    )


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


_own = torch.ops.llm_blocks
NORMS: dict[Any, Make] = {
    _own.centred_squares.default: _channels("x", "c", outputs=("c",)),
    _own.normalise_channels.default: _channels("x", *"cccc", outputs=("x",)),
    _own.channel_gradients.default: _channels("x", "x", *"cc", outputs=("c", "c"), linear=FIRST),
    _own.normalised_gradient.default: _channels(
        "x", "x", *"ccccc", outputs=("x",), linear=((0, 5, 6),)
    ),
    aten.native_layer_norm.default: _layer_norm,
    aten.native_layer_norm_backward.default: _layer_norm_backward,
    aten.native_group_norm.default: _group_norm,
    aten.native_group_norm_backward.default: _group_norm_backward,
}
