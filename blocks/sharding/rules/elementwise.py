"""Element by element operations, with broadcasting; and tensors made from nothing."""

from collections.abc import Sequence

from blocks._checks import fail
from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.rule_of import Shape, dim_names, rule_of, spread


def elementwise_rule(
    shapes: Sequence[Shape], *, linear: Sequence[Sequence[int]] = (), num_outputs: int = 1
) -> OpRule:
    """Every output element from the elements at its place.

    Args:
        shapes: of the inputs, broadcast to each other from the last dim on.
        linear: which inputs may be addends of a sum together: ``((0, 1),)`` for ``a + b``,
            ``((0,), (1,))`` for ``a * b``, ``((0,),)`` for ``a / b``, ``-a``, ``2 * a`` and the
            gradient of a function, given first; none for ``a + 1`` and for functions with a bend.
        num_outputs: of the shape of the first.

    >>> elementwise_rule([(8, 4), (4,)], linear=[(0, 1)])
    OpRule(factors=(Factor(dim0=8 parallel), Factor(dim1=4 parallel)), ...

    Raises:
        ValueError: shapes that do not broadcast.
    """
    count = max(map(len, shapes))
    names = dim_names(count)
    sizes = dict.fromkeys(names, 1)
    for shape in shapes:
        for name, size in zip(names[count - len(shape) :], shape, strict=True):
            if size != 1 and sizes[name] not in (1, size):
                raise fail("shapes", "sizes that are equal or 1", list(shapes))
            sizes[name] = size if sizes[name] == 1 else sizes[name]
    inputs = [spread(names[count - len(shape) :], shape, sizes) for shape in shapes]
    return rule_of(sizes, inputs, [" ".join(names)] * num_outputs, linear=linear)


def full_rule(shape: Shape) -> OpRule:
    """A tensor of one value: ``full``, ``zeros``, ``ones``. Ranks make their run of it."""
    names = dim_names(len(shape))
    return rule_of(dict(zip(names, shape, strict=True)), [], [" ".join(names)])


def arange_rule(size: int) -> OpRule:
    """0, 1, 2, ...: every rank makes them all, and a run of them is cut out for nothing."""
    return rule_of({"row": size}, [], ["row"], whole="row")
