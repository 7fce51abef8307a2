"""Dims that were merged for a while, kept apart.

Code that flattens ``[batch, sequence, ...]`` to rows, works on the rows and sums them up, as losses
and routers do, could only be cut along the batch. Working on the dims as they were computes the
same and leaves the choice.
"""

import dataclasses
from typing import Any

from torch import fx

from recipes.plan.trace.broadcasts import is_pointwise
from recipes.plan.trace.editing import Editor, argument, aten, is_call, is_tensor, shape_of

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Wide:
    """A tensor whose first dim is kept apart.

    node: makes it; reshaped, it is the flat tensor.
    dims: sizes of the first dims, which are merged in the flat one.
    """

    node: fx.Node
    dims: Shape


def unflatten(editor: Editor) -> None:
    """Move merges of first dims behind all operations that work on each row alike, or sum rows."""
    wide: dict[fx.Node, Wide] = {}
    for node in list(editor.graph.nodes):
        if node.op != "call_function" or not is_tensor(node):
            continue
        if is_call(node, aten.reshape.default):
            found = _of_reshape(editor, node, wide)
        else:
            dims = {wide[one].dims for one in node.all_input_nodes if one in wide}
            found = _Rewrite(editor, node, wide, dims.pop()).run() if len(dims) == 1 else None
        if found is not None:
            flat = editor.reshape(found.node, shape_of(node), before=node, like=node)
            editor.replace(node, flat)
            if flat is not found.node:
                wide[flat] = found
    editor.drop_unused()


def _of_reshape(editor: Editor, node: fx.Node, wide: dict[fx.Node, Wide]) -> Wide | None:
    """What a reshape of rows is before they were merged."""
    source = argument(node, 0)
    before, after = shape_of(source), shape_of(node)
    if source in wide:
        rows, dims = before[0], wide[source].dims
        if not after or after[0] != rows:
            return None
        shape = (*dims, *after[1:])
        return Wide(editor.reshape(wide[source].node, shape, before=node, like=node), dims)
    count = _merged(before, after)
    if count < 2:
        return None
    shape = (*before[:count], *after[1:])
    return Wide(editor.reshape(source, shape, before=node, like=node), before[:count])


def _merged(before: Shape, after: Shape) -> int:
    """How many first dims a reshape merges into its first one; 0 if it does not."""
    if not after:
        return 0
    size = 1
    for count, one in enumerate(before, start=1):
        size *= one
        if size == after[0]:
            return count if count > 1 and min(before[:count]) > 1 else 0
    return 0


class _Rewrite:
    """One call on rows, as a call on the dims the rows are made of."""

    def __init__(
        self, editor: Editor, node: fx.Node, wide: dict[fx.Node, Wide], dims: Shape
    ) -> None:
        self._editor, self._node, self._wide, self._dims = editor, node, wide, dims
        self._shift = len(dims) - 1
        self._rows = 1
        for size in dims:
            self._rows *= size

    def run(self) -> Wide | None:
        """The call on the dims kept apart, or what has to be reshaped to what the call made."""
        node = self._node
        if is_pointwise(node):
            return self._elementwise()
        if is_call(node, aten.sum.dim_IntList, aten.amax.default):
            return self._reduction()
        if is_call(node, aten.sum.default):
            return self._made((self._at(0),))
        if is_call(node, aten.gather.default, aten.scatter.src, aten.scatter_add.default):
            return self._along(1)
        if is_call(node, aten._softmax.default, aten.cumsum.default):
            return self._along(1)
        if is_call(node, aten._softmax_backward_data.default):
            return self._along(2)
        if is_call(node, aten.slice.Tensor, aten.select.int):
            return self._along(1)
        if is_call(node, aten.slice_backward.default, aten.select_backward.default):
            return self._padding()
        if is_call(node, aten.cat.default):
            return self._joined()
        if is_call(node, aten.expand.default):
            return self._expansion()
        if is_call(node, aten.embedding.default):
            return self._made((argument(node, 0), self._at(1)))
        if is_call(node, aten.embedding_dense_backward.default):
            return self._made((self._at(0), self._at(1), *node.args[2:]))
        if is_call(node, aten.einsum.default):
            return self._einsum()
        return None

    def _at(self, index: int) -> Any:
        return self._widened(argument(self._node, index))

    def _widened(self, one: Any) -> Any:
        """An argument with the rows' dims kept apart, where it has rows first."""
        if not isinstance(one, fx.Node):
            return one
        if one in self._wide:
            return self._wide[one].node
        shape = shape_of(one)
        assert shape[0] == self._rows, one.format_node()
        shape = (*self._dims, *shape[1:])
        return self._editor.reshape(one, shape, before=self._node, like=self._node)

    def _made(self, args: tuple[Any, ...]) -> Wide:
        node = self._node
        made = self._editor.add(node.target, args, dict(node.kwargs), before=node, like=node)
        return Wide(made, self._dims)

    def _has_rows(self, one: fx.Node) -> bool:
        return bool(shape_of(one)) and shape_of(one)[0] == self._rows

    def _elementwise(self) -> Wide | None:
        node = self._node
        rank = len(shape_of(node))
        if not self._has_rows(node):
            return None
        swapped: dict[fx.Node, fx.Node] = {}
        for one in node.all_input_nodes:
            shape = shape_of(one)
            if len(shape) == rank and shape[0] == self._rows:
                swapped[one] = self._widened(one)
            elif len(shape) == rank:  # one row for all
                apart = ((1,) * len(self._dims)) + shape[1:]
                swapped[one] = self._editor.reshape(one, apart, before=node, like=node)
            else:
                swapped[one] = one
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda one: swapped[one])
        made = self._editor.add(node.target, args, kwargs, before=node, like=node)  # pyright: ignore
        return Wide(made, self._dims)

    def _reduction(self) -> Wide | None:
        node = self._node
        source, given = argument(node, 0), argument(node, 1)
        rank = len(shape_of(source))
        reduced = sorted(dim % rank for dim in given) or list(range(rank))
        over_rows = list(range(len(self._dims))) if 0 in reduced else []
        others = [dim + self._shift for dim in reduced if dim != 0]
        return self._made((self._at(0), over_rows + others, *node.args[2:]))

    def _along(self, at: int) -> Wide | None:
        """A call that works along one dim, which its argument ``at`` names."""
        node = self._node
        rank = len(shape_of(argument(node, 0)))
        dim = argument(node, at) % rank
        tensors = [one for one in node.args if isinstance(one, fx.Node)]
        if dim == 0 or not all(self._has_rows(one) for one in tensors):
            return None
        args = [self._widened(one) for one in node.args]
        args[at] = dim + self._shift
        return self._made(tuple(args))

    def _padding(self) -> Wide | None:
        """A part of a dim, put among zeros: the shape is told."""
        node = self._node
        shape, dim = argument(node, 1), argument(node, 2) % len(shape_of(node))
        if dim == 0 or not self._has_rows(argument(node, 0)):
            return None
        wide = [*self._dims, *shape[1:]]
        return self._made((self._at(0), wide, dim + self._shift, *node.args[3:]))

    def _joined(self) -> Wide | None:
        node = self._node
        parts = argument(node, 0)
        given: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        dim = given % len(shape_of(node))
        if dim == 0 or not all(self._has_rows(one) for one in parts):
            return None
        return self._made(([self._widened(one) for one in parts], dim + self._shift))

    def _expansion(self) -> Wide | None:
        node = self._node
        source = argument(node, 0)
        if len(shape_of(source)) != len(shape_of(node)) or not self._has_rows(source):
            return None
        return self._made((self._at(0), [*self._dims, *shape_of(node)[1:]]))

    def _einsum(self) -> Wide | None:
        """The letter of the rows becomes several."""
        node = self._node
        terms, _, result = argument(node, 0).partition("->")
        operands = argument(node, 1)
        first = next(at for at, one in enumerate(operands) if one in self._wide)
        letter = terms.split(",")[first][0]
        spare = [one for one in "zyxwvutsrqponm" if one not in terms]
        several = letter + "".join(spare[: self._shift])
        made_of = []
        for one, term in zip(operands, terms.split(","), strict=True):
            if letter in term and term[0] != letter:
                return None
            if one in self._wide and term[0] != letter:
                return None
            made_of.append(self._widened(one) if letter in term else one)
        equation = f"{terms.replace(letter, several)}->{result.replace(letter, several)}"
        made = self._editor.add(aten.einsum.default, (equation, made_of), before=node, like=node)
        return Wide(made, self._dims)
