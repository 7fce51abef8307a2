"""Tensors made from nothing, as ``full``; constants of the code as calls that hold their data."""

import math
from typing import Any

import torch
from torch import Tensor, fx

from blocks._checks import check
from recipes.plan.trace.editing import Editor, argument, aten, is_call, shape_of

MAX_CONSTANT_ELEMENTS = 1 << 16

_ZEROS = (
    aten.zeros.default,
    aten.zeros_like.default,
    aten.new_zeros.default,
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.new_empty.default,
)
_ONES = (aten.ones.default, aten.ones_like.default, aten.new_ones.default)
_VALUE_AT = {
    aten.full_like.default: 1,
    aten.new_full.default: 2,
    aten.scalar_tensor.default: 0,
}


def constant(data: tuple[Any, ...], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of ``shape`` with these elements."""
    return torch.tensor(data, dtype=dtype).reshape(shape)


def simplify_fills(editor: Editor) -> None:
    """Rewrite what makes tensors of one value as ``full``, which reads no other tensor.

    What is left without a value (``empty``) is zeros. Tensors that the code holds become calls of
    ``constant``.

    Raises:
        ValueError: a constant of more than ``MAX_CONSTANT_ELEMENTS`` elements, which should be a
            buffer.
    """
    for node in list(editor.graph.nodes):
        if node.op == "get_attr":
            _inline(editor, node)
        elif is_call(node, aten.copy.default):
            _copy(editor, node)
        elif node.op == "call_function" and (value := _value_of(node)) is not None:
            editor.replace(node, _full(editor, node, value))


def _copy(editor: Editor, node: fx.Node) -> None:
    """A copy into a tensor is the one that is copied, in the other's shape and dtype."""
    source = argument(node, 1)
    options = {"dtype": node.meta["val"].dtype}
    source = editor.add(aten._to_copy.default, (source,), options, before=node, like=node)
    args = (source, list(shape_of(node)))
    editor.replace(node, editor.add(aten.expand.default, args, before=node, like=node))


def _value_of(node: fx.Node) -> Any:
    if is_call(node, aten.fill.Scalar):
        return argument(node, 1)
    if is_call(node, aten.fill.Tensor):
        source = argument(node, 1)
        while is_call(source, aten.lift_fresh_copy.default, aten.detach.default):
            source = argument(source, 0)
        return argument(source, 1) if is_call(source, aten.full.default) else None
    if node.target in _ZEROS:
        return False if node.meta["val"].dtype == torch.bool else 0
    if node.target in _ONES:
        return True if node.meta["val"].dtype == torch.bool else 1
    for target, at in _VALUE_AT.items():
        if is_call(node, target):
            return argument(node, at)
    return None


def _full(editor: Editor, node: fx.Node, value: Any) -> fx.Node:
    options = {"dtype": node.meta["val"].dtype}
    return editor.add(
        aten.full.default, (list(shape_of(node)), value), options, before=node, like=node
    )


def _inline(editor: Editor, node: fx.Node) -> None:
    tensor: Any = editor.graph_module
    for part in str(node.target).split("."):
        tensor = getattr(tensor, part)
    known = isinstance(tensor, Tensor) and type(tensor) is Tensor and tensor.device.type == "cpu"
    check(known, f"constant {node.target}", "a CPU tensor with values", tensor)
    count = math.prod(tensor.shape)
    check(
        count <= MAX_CONSTANT_ELEMENTS, f"constant {node.target}",
        f"at most {MAX_CONSTANT_ELEMENTS} elements", count, "register it as a buffer",
    )  # fmt: skip
    data = tuple(tensor.flatten().tolist())
    if len(set(data)) == 1:
        with_val = _full(editor, node, data[0])
    else:
        args = (data, tuple(tensor.shape), tensor.dtype)
        with_val = editor.add(constant, args, before=node, like=node)
    editor.replace(node, with_val)
