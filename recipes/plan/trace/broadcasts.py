"""Expansions that elementwise operations make anyway, taken out."""

from typing import Any

import torch
from torch import fx

from recipes.plan.trace.editing import Editor, argument, aten, is_call, is_tensor, shape_of

_RANDOM = torch.Tag.nondeterministic_seeded


def drop_expansions(editor: Editor) -> None:
    """Let elementwise operations read what was expanded for them, and expand after them where
    nothing else in them is as large.
    """
    for node in list(editor.graph.nodes):
        if not is_pointwise(node):
            continue
        expanded = [one for one in node.all_input_nodes if is_call(one, aten.expand.default)]
        if not expanded:
            continue
        sources = {one: argument(one, 0) for one in expanded}
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: sources.get(one, one))  # noqa: B023
        made = editor.add(node.target, args, kwargs, before=node, like=node)  # pyright: ignore
        shape = list(shape_of(node))
        if list(shape_of(made)) != shape:
            made = editor.add(aten.expand.default, (made, shape), before=node, like=node)
        editor.replace(node, made)
    editor.drop_unused()


def is_pointwise(node: fx.Node) -> bool:
    """Whether a call computes each element of its one result from those at the same place of its
    arguments, alike for all places.
    """
    if node.op != "call_function" or not is_tensor(node):
        return False
    tags: Any = getattr(node.target, "tags", ())
    named = node.target in (aten._to_copy.default, aten.threshold_backward.default)
    return (torch.Tag.pointwise in tags or named) and _RANDOM not in tags
