"""Operations that need the whole of some dims: slices, joins, pads, sorts, scans, softmax.

The dims they touch are not cut, all others are.
"""

from collections.abc import Sequence

from blocks._checks import check
from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.rule_of import Shape, dim_from_front, dim_names, rule_of


def along_dim_rule(
    shape: Shape,
    dims: Sequence[int],
    *,
    num_inputs: int = 1,
    num_outputs: int = 1,
    linear: Sequence[Sequence[int]] = (),
) -> OpRule:
    """Tensors alike but for ``dims``, which each rank has whole.

    >>> along_dim_rule((8, 4), [-1]).inputs
    ((0, None),)
    """
    names = dim_names(len(shape))
    touched = {dim_from_front(dim, len(shape)) for dim in dims}
    sizes = {n: size for at, (n, size) in enumerate(zip(names, shape, strict=True))
             if at not in touched}  # fmt: skip
    along = " ".join(name if name in sizes else "_" for name in names)
    return rule_of(sizes, [along] * num_inputs, [along] * num_outputs, linear=linear)


def slice_rule(shape: Shape, dim: int) -> OpRule:
    """A range of a dim, or its backward; also roll, flip, repeat_interleave along a dim."""
    return along_dim_rule(shape, [dim], linear=[(0,)])


def pad_rule(shape: Shape, dims: Sequence[int], *, zeros: bool = True) -> OpRule:
    """Elements added at the ends of ``dims``.

    Args:
        zeros: whether they are zeros, or copies of elements, so that a sum stays one.
    """
    return along_dim_rule(shape, dims, linear=[(0,)] if zeros else [])


def split_rule(shape: Shape, dim: int, num_parts: int) -> OpRule:
    """A dim cut into several outputs: split, chunk."""
    return along_dim_rule(shape, [dim], num_outputs=num_parts, linear=[(0,)])


def cat_rule(shapes: Sequence[Shape], dim: int) -> OpRule:
    """Tensors joined along a dim; addends joined are addends."""
    together = [tuple(range(len(shapes)))]
    check(len(shapes) > 0, "shapes", "at least one", shapes)
    at, count = dim_from_front(dim, len(shapes[0])), len(shapes[0])
    rest = {(len(one), *one[:at], *one[at + 1 :]) for one in shapes}
    check(len(rest) == 1, "shapes", f"{count} dims, alike but for dim {at}", shapes)
    return along_dim_rule(shapes[0], [dim], num_inputs=len(shapes), linear=together)


def slice_scatter_rule(shape: Shape, dim: int) -> OpRule:
    """(x, part): x with a range of a dim replaced."""
    return along_dim_rule(shape, [dim], num_inputs=2, linear=[(0, 1)])


def select_rule(shape: Shape, dim: int) -> OpRule:
    """One entry of a dim, which is gone after.

    >>> select_rule((2, 8, 6), 1).outputs
    ((0, 1),)
    """
    return _without(shape, [dim], ["all"], ["rest"], [(0,)])


def select_backward_rule(shape: Shape, dim: int) -> OpRule:
    """Zeros of ``shape`` but for one entry of a dim, which is the input."""
    return _without(shape, [dim], ["rest"], ["all"], [(0,)])


def select_scatter_rule(shape: Shape, dim: int) -> OpRule:
    """(x, entry): x with one entry of a dim replaced."""
    return _without(shape, [dim], ["all", "rest"], ["all"], [(0, 1)])


def unbind_rule(shape: Shape, dim: int) -> OpRule:
    """All entries of a dim, an output each."""
    count = shape[dim_from_front(dim, len(shape))]
    return _without(shape, [dim], ["all"], ["rest"] * count, [(0,)])


def stack_rule(shapes: Sequence[Shape], dim: int) -> OpRule:
    """Tensors as the entries of a new dim.

    >>> stack_rule([(8, 6)] * 3, 1).outputs
    ((0, None, 1),)
    """
    count = len(shapes)
    check(len(set(map(tuple, shapes))) == 1, "shapes", "all alike", shapes)
    at = dim_from_front(dim, len(shapes[0]) + 1)
    stacked = [*shapes[0][:at], count, *shapes[0][at:]]
    return _without(stacked, [at], ["rest"] * count, ["all"], [tuple(range(count))])


def cumsum_rule(shape: Shape, dim: int) -> OpRule:
    """Running sums along a dim."""
    return along_dim_rule(shape, [dim], linear=[(0,)])


def sort_rule(shape: Shape, dim: int) -> OpRule:
    """Values and indices along a dim: sort, topk, cummax, max over a dim that is kept."""
    return along_dim_rule(shape, [dim], num_outputs=2)


def softmax_rule(shape: Shape, dim: int) -> OpRule:
    """softmax or log_softmax over a dim that ranks have whole.

    To cut the dim, write it as amax, exp, sum and elementwise operations.
    """
    return along_dim_rule(shape, [dim])


def softmax_backward_rule(shape: Shape, dim: int) -> OpRule:
    """(grad, output) of softmax or log_softmax."""
    return along_dim_rule(shape, [dim], num_inputs=2, linear=[(0,)])


def _without(
    shape: Shape,
    dims: Sequence[int],
    inputs: Sequence[str],
    outputs: Sequence[str],
    linear: Sequence[Sequence[int]],
) -> OpRule:
    """Tensors of ``shape`` with dims that are whole (``all``) or missing (``rest``)."""
    names = dim_names(len(shape))
    gone = {names[dim_from_front(dim, len(shape))] for dim in dims}
    check(bool(shape), "shape", "at least one dim", shape)
    rest = [name for name in names if name not in gone]
    written = {
        "all": " ".join("_" if name in gone else name for name in names),
        "rest": " ".join(rest),
    }
    sizes = {name: size for name, size in zip(names, shape, strict=True) if name not in gone}
    return rule_of(
        sizes, [written[i] for i in inputs], [written[o] for o in outputs], linear=linear
    )
