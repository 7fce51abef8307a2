"""Attention masks that are a causal mask, or none at all, told from their values.

Some models make the mask of causal attention out of positions, as a tensor. Where it depends on
nothing that is given to the model it can be looked at while tracing, and attention can be told
``is_causal`` instead of reading it.
"""

import math
import operator
from typing import Any, Literal

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import unset_fake_temporarily

from recipes.plan.trace.broadcasts import is_pointwise
from recipes.plan.trace.editing import Editor, argument, aten, is_call, shape_of

MAX_ELEMENTS = 1 << 28
"""Of a mask that is looked at."""

_FORWARD = aten._scaled_dot_product_flash_attention_for_cpu.default
_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward.default


def recognise_causal(editor: Editor) -> None:
    """Take masks that are lower triangles, or let everything pass, out of attention calls."""
    kinds: dict[fx.Node, Any] = {}
    known = _Constants()
    for node in list(editor.graph.nodes):
        if is_call(node, _FORWARD):
            _widen_sums(node)
        mask = node.kwargs.get("attn_mask") if node.op == "call_function" else None
        if not is_call(node, _FORWARD, _BACKWARD) or not isinstance(mask, fx.Node):
            continue
        base = _base(mask)
        if base not in kinds:
            kinds[base] = _kind(base, known)
        if kinds[base] is None:
            continue
        at = 4 if node.target == _FORWARD else 7
        given: list[Any] = [*node.args]
        given += [0.0, False][len(given) - 3 :] if node.target == _FORWARD else []
        given[at] = kinds[base] == "causal"
        kwargs = {key: value for key, value in node.kwargs.items() if key != "attn_mask"}
        node.args, node.kwargs = tuple(given), kwargs
    editor.drop_unused()


def _widen_sums(node: fx.Node) -> None:
    """Log sums are as wide as float64 queries; torch 2.11 says float32 of what it has not run."""
    values = list(node.meta["val"])
    if values[0].dtype == torch.float64 and values[1].dtype != torch.float64:
        values[1] = values[1].double()
        node.meta["val"] = tuple(values)
        for user in node.users:
            if user.target is operator.getitem and user.args[1] == 1:
                user.meta["val"] = values[1]


def _base(mask: fx.Node) -> fx.Node:
    """What says where a mask of zeros and minus infinities lets pass, where that is known."""
    while is_call(mask, aten.expand.default):
        mask = argument(mask, 0)
    if not is_call(mask, aten.where.self):
        return mask
    passing = _is_full(argument(mask, 1), 0.0) and _is_full(argument(mask, 2), -math.inf)
    return argument(mask, 0) if passing else mask


def _is_full(node: Any, value: float) -> bool:
    return is_call(node, aten.full.default) and argument(node, 1) == value


def _kind(node: fx.Node, known: "_Constants") -> Literal["causal", "none"] | None:
    shape = shape_of(node)
    if len(shape) < 2 or math.prod(shape[-2:]) > MAX_ELEMENTS or not known.is_constant(node):
        return None
    with unset_fake_temporarily(), torch.no_grad():
        mask = known.broadcast(node)
        if mask is None or math.prod(mask.shape[:-2]) != 1:
            return None
        passes = mask if mask.dtype == torch.bool else mask == 0
        if mask.dtype != torch.bool and not bool((passes | (mask == -math.inf)).all()):
            return None
        passes = passes.reshape(passes.shape[-2:]).expand(shape[-2:])
        if bool(passes.all()):
            return "none"
        square = shape[-1] == shape[-2]
        return (
            "causal"
            if square and bool((passes == passes.new_ones(shape[-2:]).tril()).all())
            else None
        )


class _Constants:
    """Values of nodes that depend on nothing given to the graph."""

    def __init__(self) -> None:
        self._constant: dict[fx.Node, bool] = {}
        self._values: dict[fx.Node, Any] = {}

    def is_constant(self, node: fx.Node) -> bool:
        pending = [node]
        while pending:
            one = pending[-1]
            left = [i for i in one.all_input_nodes if i not in self._constant]
            if left and one.op == "call_function":
                pending.extend(left)
                continue
            fixed = one.op == "call_function" and all(
                self._constant[i] for i in one.all_input_nodes
            )
            random = torch.Tag.nondeterministic_seeded in getattr(one.target, "tags", ())
            self._constant[one] = fixed and not random
            pending.pop()
        return self._constant[node]

    def broadcast(self, node: fx.Node) -> Tensor | None:
        """A tensor that broadcasts to the node's value; None where that is too large.

        Dims in front along which nothing changes have size 1, where that could be seen in small
        tensors.
        """
        if is_call(node, aten.expand.default):
            return self.broadcast(argument(node, 0))
        if is_pointwise(node):
            inputs = {one: self.broadcast(one) for one in node.all_input_nodes}
            if any(one is None for one in inputs.values()):
                return None
            shapes = [one.shape for one in inputs.values() if one is not None]
            if math.prod(torch.broadcast_shapes(*shapes)) > MAX_ELEMENTS:
                return None
            return self._call(node, inputs)
        if math.prod(shape_of(node)) > MAX_ELEMENTS // 16:
            return None
        value = self.value(node)
        while value.dim() > 2 and value.shape[0] > 1:
            if not bool((value == value[:1]).all()):
                break
            value = value[:1]
        return value

    def value(self, node: fx.Node) -> Any:
        pending = [node]
        while pending:
            one = pending[-1]
            left = [i for i in one.all_input_nodes if i not in self._values]
            if left:
                pending.extend(left)
                continue
            if one not in self._values:
                self._values[one] = self._call(one, self._values)
            pending.pop()
        return self._values[node]

    @staticmethod
    def _call(node: fx.Node, values: Any) -> Any:
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: values[one])
        return node.target(*args, **kwargs)  # pyright: ignore
