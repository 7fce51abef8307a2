"""Convolutions and their two gradients as operations of their own, which know how many groups
they have from the shapes they are given.

``aten.convolution_backward`` makes both gradients at once, asks for tensors whose values it does
not need, and is told the groups of the whole: a rank with a run of the groups could not call it.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from recipes.plan.trace.editing import Editor, aten, is_call, shape_of


class Geometry(NamedTuple):
    """What a convolution does along its spatial dims.

    groups: of the whole convolution; group_channels: channels of a group on the side of the
        first dim of the weight, by which the groups at hand are counted.
    places: spatial sizes of the input.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    group_channels: int
    places: tuple[int, ...]


def convolution(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution of x with a weight, without bias."""
    return aten.convolution.default(x, weight, None, *_options(weight, geometry))


def conv_input_gradient(grad: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The gradient of x from that of the output."""
    channels = (
        weight.shape[0] if geometry.transposed else weight.shape[1] * _groups(weight, geometry)
    )
    x = grad.new_empty(()).expand(grad.shape[0], channels, *geometry.places)
    return _backward(grad, x, weight, geometry, [True, False])[0]


def conv_weight_gradient(
    grad: Tensor, x: Tensor, geometry: Geometry, kernel: tuple[int, ...]
) -> Tensor:
    """The gradient of the weight, of spatial size ``kernel``, from that of the output."""
    first, second = (x, grad) if geometry.transposed else (grad, x)
    groups = max(1, first.shape[1] // geometry.group_channels) if geometry.groups > 1 else 1
    weight = grad.new_empty(()).expand(first.shape[1], second.shape[1] // groups, *kernel)
    return _backward(grad, x, weight, geometry, [False, True])[1]


def split_convolutions(editor: Editor) -> None:
    """Rewrite convolutions and their backwards with the operations of this module; a bias is an
    addition behind the convolution, its gradient a sum.
    """
    for node in list(editor.graph.nodes):
        if is_call(node, aten.convolution.default):
            _split_forward(editor, node)
        elif is_call(node, aten.convolution_backward.default):
            _split_backward(editor, node)
    editor.drop_unused()


def _split_forward(editor: Editor, node: fx.Node) -> None:
    arguments: Any = node.args
    x, weight, bias, *options = arguments
    geometry = _geometry(x, weight, options)
    made = editor.add(convolution, (x, weight, geometry), before=node, like=node)
    if bias is not None:
        shape = [shape_of(bias)[0]] + [1] * (len(shape_of(x)) - 2)
        bias = editor.reshape(bias, shape, before=node, like=node)
        made = editor.add(aten.add.Tensor, (made, bias), before=node, like=node)
    editor.replace(node, made)


def _split_backward(editor: Editor, node: fx.Node) -> None:
    arguments: Any = node.args
    grad, x, weight, _, *options, mask = arguments
    geometry = _geometry(x, weight, options)
    for taken in list(node.users):
        at: Any = taken.args[1]
        assert mask[at], node.format_node()
        if at == 0:
            made = editor.add(conv_input_gradient, (grad, weight, geometry), before=node, like=node)
        elif at == 1:
            args = (grad, x, geometry, shape_of(weight)[2:])
            made = editor.add(conv_weight_gradient, args, before=node, like=node)
        else:
            dims = [dim for dim in range(len(shape_of(grad))) if dim != 1]
            made = editor.add(aten.sum.dim_IntList, (grad, dims), before=node, like=node)
        editor.replace(taken, made)
    editor.graph.erase_node(node)


def _geometry(x: fx.Node, weight: fx.Node, options: list[Any]) -> Geometry:
    stride, padding, dilation, transposed, output_padding, groups = options
    return Geometry(
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        transposed,
        tuple(output_padding),
        groups,
        shape_of(weight)[0] // groups,
        shape_of(x)[2:],
    )


def _groups(weight: Tensor, geometry: Geometry) -> int:
    return max(1, weight.shape[0] // geometry.group_channels) if geometry.groups > 1 else 1


def _options(weight: Tensor, geometry: Geometry) -> tuple[Any, ...]:
    g = geometry
    return (g.stride, g.padding, g.dilation, g.transposed, g.output_padding, _groups(weight, g))


def _backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, mask: list[bool]
) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return aten.convolution_backward.default(
            grad, x, weight, None, *_options(weight, geometry), [*mask, False]
        )
