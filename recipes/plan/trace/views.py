"""Views in two words, ``reshape`` and ``permute``, and none that does nothing."""

import torch
from torch import fx

from recipes.plan.trace.editing import Editor, argument, aten, is_call, shape_of

_SAME = (
    aten.detach.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
)
_RESHAPES = (
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze.default,
)
_PERMUTES = (aten.t.default, aten.transpose.int, aten.permute.default)
_CHECKS = (
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
)


def simplify_views(editor: Editor) -> None:
    """Rewrite every view as one reshape or permute of what is no view of the same kind.

    Identities (``detach``, a copy to the same dtype, ``expand`` to the same shape, ``x ** 1``) and
    checks of metadata go away.
    """
    for node in list(editor.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _CHECKS:
            editor.graph.erase_node(node)
        elif _is_identity(node):
            editor.replace(node, argument(node, 0))
        elif node.target in _RESHAPES or (
            is_call(node, aten.expand.default) and is_call(node.args[0], aten.full.default)
        ):
            _simplify_reshape(editor, node)
        elif is_call(node, aten.split.Tensor, aten.split_with_sizes.default):
            _slices(editor, node)
        elif is_call(node, aten.cat.default):
            _drop_empty(editor, node)
        elif node.target in _PERMUTES:
            _simplify_permute(editor, node)
    editor.drop_unused()


def _slices(editor: Editor, node: fx.Node) -> None:
    """A split as slices, one for every part that is read."""
    source = argument(node, 0)
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    begins = [0]
    for part in node.meta["val"]:
        begins.append(begins[-1] + part.shape[dim])
    for taken in list(node.users):
        at = argument(taken, 1)
        args = (source, dim, begins[at], begins[at + 1])
        made = editor.add(aten.slice.Tensor, args, before=node, like=node)
        editor.replace(taken, made)
    editor.graph.erase_node(node)


def _drop_empty(editor: Editor, node: fx.Node) -> None:
    """A join without the tensors that have no elements."""
    parts = [one for one in argument(node, 0) if 0 not in shape_of(one)]
    if len(parts) == 1 and shape_of(parts[0]) == shape_of(node):
        editor.replace(node, parts[0])
    elif 0 < len(parts) < len(argument(node, 0)):
        node.args = (parts, *node.args[1:])


def _simplify_reshape(editor: Editor, node: fx.Node) -> None:
    source = argument(node, 0)
    while is_call(source, aten.reshape.default):
        source = argument(source, 0)
    shape = shape_of(node)
    if is_call(source, aten.full.default):  # full in another shape
        args = (list(shape), argument(source, 1))
        made = editor.add(aten.full.default, args, dict(source.kwargs), before=node, like=node)
    elif _keeps_dims_for(source, shape):
        args = (argument(source, 0), argument(source, 1))
        made = editor.add(source.target, args, dict(source.kwargs), before=node, like=source)
    else:
        made = editor.reshape(source, shape, before=node, like=node)
    editor.replace(node, made)


def _keeps_dims_for(source: fx.Node, shape: tuple[int, ...]) -> bool:
    """Whether a sum keeps the dims it sums over only for them to be taken out."""
    if not is_call(source, aten.sum.dim_IntList) or len(source.users) > 1 or len(source.args) < 3:
        return False
    rank = len(shape_of(source))
    summed = {dim % rank for dim in argument(source, 1)} or set(range(rank))
    left = tuple(size for dim, size in enumerate(shape_of(source)) if dim not in summed)
    return bool(argument(source, 2)) and left == shape


def _simplify_permute(editor: Editor, node: fx.Node) -> None:
    source, order = argument(node, 0), permute_order(node)
    while is_call(source, aten.permute.default):
        inner = argument(source, 1)
        source, order = argument(source, 0), [inner[dim] for dim in order]
    editor.replace(node, editor.permute(source, order, before=node, like=node))


def permute_order(node: fx.Node) -> list[int]:
    """For every dim of a permute's output the dim of its input."""
    rank = len(shape_of(node))
    if node.target == aten.t.default:
        return list(range(rank))[::-1]
    if node.target == aten.transpose.int:
        order = list(range(rank))
        if rank:
            a, b = (argument(node, at) % rank for at in (1, 2))
            order[a], order[b] = order[b], order[a]
        return order
    return [dim % rank for dim in argument(node, 1)]


def _is_identity(node: fx.Node) -> bool:
    if node.target in _SAME:
        return True
    if node.target == aten.expand.default:
        return shape_of(node) == shape_of(argument(node, 0))
    if node.target == aten._to_copy.default:
        before, after = argument(node, 0).meta["val"], node.meta["val"]
        return before.dtype == after.dtype and before.device == after.device
    if node.target == aten.pow.Tensor_Scalar:
        before, after = argument(node, 0).meta["val"], node.meta["val"]
        return argument(node, 1) == 1 and before.dtype == after.dtype
    if node.target == aten.slice.Tensor:
        return shape_of(node) == shape_of(argument(node, 0))
    if node.target == aten.clone.default:
        return (
            isinstance(argument(node, 0), fx.Node)
            and argument(node, 0).op == "call_function"
            and (
                node.meta["val"].is_contiguous()
                and argument(node, 0).meta["val"].is_contiguous()
                and argument(node, 0).target not in (aten.reshape.default, aten.expand.default)
                and isinstance(node.meta["val"], torch.Tensor)
            )
        )
    return False
