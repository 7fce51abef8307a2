"""Calls that are made twice, made once."""

from collections.abc import Callable

import torch
from torch import fx

from recipes.plan.trace.editing import Editor

_RANDOM = torch.Tag.nondeterministic_seeded


def merge_duplicates(editor: Editor, block_of: Callable[[fx.Node], int]) -> None:
    """Keep the first of equal calls on equal arguments, in one pass and one repeated block.

    What forward and backward both compute stays computed twice: else it would be kept between
    them. What two blocks compute stays too, so that repeated blocks stay alike.
    """
    first: dict[object, fx.Node] = {}
    for node in list(editor.graph.nodes):
        if node.op != "call_function" or _RANDOM in getattr(node.target, "tags", ()):
            continue
        where = (node.meta["origin"].phase, block_of(node))
        key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())), where)
        if key in first:
            editor.replace(node, first[key])
        else:
            first[key] = node
