"""Matrix multiplications as contractions of tensors with all their dims.

``view -> mm -> view`` and what its gradient makes of it become one ``einsum`` over batch,
sequence, rows and columns, so that each of them can be cut.
"""

import dataclasses
import string
from typing import Any

from torch import fx

from recipes.plan.trace.editing import Editor, argument, aten, is_call, shape_of
from recipes.plan.trace.views import permute_order


@dataclasses.dataclass(frozen=True)
class Atom:
    """A dim of a source tensor, longer than 1; ``dim`` None where it is an expansion of it."""

    size: int
    dim: int | None


Group = tuple[Atom, ...]
"""What a dim of a matrix is made of, outermost first; empty for a dim of size 1."""


@dataclasses.dataclass(frozen=True)
class Operand:
    """A matrix, or a batch of them, in terms of the tensor that it is a view of."""

    source: fx.Node
    groups: tuple[Group, ...]


def contract(editor: Editor) -> None:
    """Rewrite ``mm``, ``addmm``, ``bmm`` and ``baddbmm`` as ``einsum`` of the tensors behind the
    views they read; a reshape behind the ``einsum`` gives the result the shape it had.
    """
    for node in list(editor.graph.nodes):
        if is_call(node, aten.mm.default, aten.bmm.default):
            editor.replace(node, _product(editor, node, *node.args))
        elif is_call(node, aten.addmm.default, aten.baddbmm.default):
            addend, a, b = node.args
            product = _scaled(editor, node, _product(editor, node, a, b), "alpha")
            addend = _scaled(editor, node, addend, "beta")
            total = editor.add(aten.add.Tensor, (product, addend), before=node, like=node)
            editor.replace(node, total)
    editor.drop_unused()


def _scaled(editor: Editor, node: fx.Node, value: Any, name: str) -> Any:
    factor = node.kwargs.get(name, 1)
    if factor == 1:
        return value
    return editor.add(aten.mul.Tensor, (value, factor), before=node, like=node)


def operand_of(node: fx.Node) -> Operand:
    """A tensor as dims of what it is a view, a copy or an expansion of."""
    source = node
    groups: tuple[Group, ...] = _plain(node).groups
    while source.op == "call_function":
        if is_call(source, aten.clone.default):
            moved = {dim: (Atom(size, dim),) for dim, size in enumerate(shape_of(source))}
        elif is_call(source, aten.permute.default):
            shape = shape_of(source)
            order = permute_order(source)
            moved = {dim: (Atom(shape[dim], order[dim]),) for dim in range(len(shape))}
        elif is_call(source, aten.expand.default):
            moved = _expansion(shape_of(argument(source, 0)), shape_of(source))
        elif is_call(source, aten.reshape.default):
            moved = merges(shape_of(argument(source, 0)), shape_of(source))
        else:
            break
        dims = {atom.dim for group in groups for atom in group if atom.dim is not None}
        if not dims <= set(moved):
            break  # it is a part of a dim of the tensor before
        groups = tuple(
            tuple(
                part
                for atom in group
                for part in ((atom,) if atom.dim is None else moved[atom.dim])
            )
            for group in groups
        )
        source = argument(source, 0)
    return Operand(source, groups)


def _plain(node: fx.Node) -> Operand:
    return Operand(
        node,
        tuple((Atom(size, dim),) if size > 1 else () for dim, size in enumerate(shape_of(node))),
    )


def _expansion(before: tuple[int, ...], after: tuple[int, ...]) -> dict[int, Group]:
    new = len(after) - len(before)
    return {
        dim: (Atom(size, dim - new if dim >= new and before[dim - new] == size else None),)
        for dim, size in enumerate(after)
    }


def merges(before: tuple[int, ...], after: tuple[int, ...]) -> dict[int, Group]:
    """For the dims of a reshape's output that are whole dims of its input, merged: those.

    >>> merges((2, 3, 8), (6, 4, 2))
    {0: (Atom(size=2, dim=0), Atom(size=3, dim=1))}
    """
    found: dict[int, Group] = {}
    for old, new in aligned(before, after):
        if len(new) == 1:
            found[new[0]] = tuple(Atom(before[dim], dim) for dim in old)
    return found


def aligned(
    before: tuple[int, ...], after: tuple[int, ...]
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Runs of dims of two shapes of as many elements, in pairs of equal size, as short as can be.

    Dims of size 1 are in none.

    >>> aligned((2, 3, 8), (6, 1, 4, 2))
    [((0, 1), (0,)), ((2,), (2, 3))]
    """
    ones = [tuple(dim for dim, size in enumerate(shape) if size != 1) for shape in (before, after)]
    return segments([before[dim] for dim in ones[0]], [after[dim] for dim in ones[1]], *ones)


def segments(
    first: list[int], second: list[int], first_names: Any, second_names: Any
) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Two lists of sizes with equal products, cut wherever their running products agree."""
    found, at, to, lower, upper = [], 0, 0, 0, 0
    left = right = 1
    while at < len(first) or to < len(second):
        if (left <= right and at < len(first)) or to == len(second):
            left *= first[at]
            at += 1
        else:
            right *= second[to]
            to += 1
        if left == right:
            found.append((tuple(first_names[lower:at]), tuple(second_names[upper:to])))
            lower, upper, left, right = at, to, 1, 1
    return found


Segment = tuple[str, Group]
"""The role of an index of the contraction, and the dims of the operand it runs over."""


def _product(editor: Editor, node: fx.Node, a: Any, b: Any) -> fx.Node:
    """The product of two matrices, or batches of them, in the shape of ``node``."""
    for left, right in (
        (operand_of(a), operand_of(b)),
        (_plain(a), operand_of(b)),
        (operand_of(a), _plain(b)),
        (_plain(a), _plain(b)),
    ):
        spelled = _spell(left, right)
        if spelled is not None:
            break
    else:
        raise AssertionError(node.format_node())
    first, second, out = spelled
    roles = dict.fromkeys(role for role, _ in (*first, *second))
    letters = dict(zip(roles, string.ascii_letters, strict=False))
    one, one_text = _materialised(editor, node, left.source, first, letters)
    two, two_text = _materialised(editor, node, right.source, second, letters)
    equation = f"{one_text},{two_text}->{''.join(letters[role] for role in out)}"
    result = editor.add(aten.einsum.default, (equation, [one, two]), before=node, like=node)
    return editor.reshape(result, shape_of(node), before=node, like=node)


def _spell(left: Operand, right: Operand) -> tuple[list[Segment], list[Segment], list[str]] | None:
    """The segments of both operands and the roles of the result; None where an expansion is in
    the way.
    """
    first: list[Segment] = []
    second: list[Segment] = []
    out: list[str] = []

    def both(name: str, one: Group, two: Group) -> None:
        pairs = segments([a.size for a in one], [a.size for a in two], one, two)
        for at, (mine, yours) in enumerate(pairs):
            role = f"{name}{at}"
            out.append(role)
            first.append((role, mine))
            second.append((role, yours))

    for at, (one, two) in enumerate(zip(left.groups[:-2], right.groups[:-2], strict=True)):
        both(f"batch{at}.", one, two)
    for name, group, to in (
        ("row", left.groups[-2], first),
        ("column", right.groups[-1], second),
    ):
        for at, atom in enumerate(group):
            out.append(f"{name}{at}")
            to.append((f"{name}{at}", (atom,)))
    outer = list(out)
    both("inner", left.groups[-1], right.groups[-2])
    kept = [[(role, atoms) for role, atoms in one if not _absent(atoms)] for one in (first, second)]
    for one in (*first, *second):
        if not _absent(one[1]) and any(atom.dim is None for atom in one[1]):
            return None
    here = [{role for role, _ in one} for one in kept]
    inner = {role for role in out if role.startswith("inner")}
    if not (set(outer) <= here[0] | here[1] and inner <= here[0] & here[1]):
        return None
    return kept[0], kept[1], outer


def _absent(atoms: Group) -> bool:
    return len(atoms) == 1 and atoms[0].dim is None


def _materialised(
    editor: Editor, node: fx.Node, source: fx.Node, parts: list[Segment], letters: dict[str, str]
) -> tuple[fx.Node, str]:
    """The source with one dim for each segment, and the letters of its dims."""
    ordered = sorted(parts, key=lambda part: part[1][0].dim or 0)
    shape = shape_of(source)
    dims = _dims_of(ordered)
    if dims != sorted(dims):  # what is merged lies apart
        ordered = parts
        dims = _dims_of(ordered)
        rest = [dim for dim in range(len(shape)) if dim not in dims]
        source = editor.permute(source, [*rest, *dims], before=node, like=node)
    sizes = []
    for _, atoms in ordered:
        size = 1
        for atom in atoms:
            size *= atom.size
        sizes.append(size)
    source = editor.reshape(source, sizes, before=node, like=node)
    return source, "".join(letters[role] for role, _ in ordered)


def _dims_of(parts: list[Segment]) -> list[int]:
    return [atom.dim for _, atoms in parts for atom in atoms if atom.dim is not None]
