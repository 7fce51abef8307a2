"""Operations that move no element: views, permutations, expansions."""

import math
from collections.abc import Iterator, Sequence

from blocks._checks import check, fail
from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.rule_of import Shape, dim_from_front, dim_names, rule_of, spread


def view_rule(old: Shape, new: Shape) -> OpRule:
    """A contiguous tensor seen with other dims: view, reshape, flatten, squeeze, unsqueeze.

    A dim that stays can be cut. Of dims that are merged or split the outermost can, into as many
    even runs as both sides have: a cut there stays a run of the first dim on either side.

    >>> view_rule((2, 8, 6), (16, 6)).factors
    (Factor(dim0=2 parallel even), Factor(dim1=6 parallel))
    >>> view_rule((4, 48), (4, 6, 8)).inputs
    ((0, 1),)

    Raises:
        ValueError: shapes of different numbers of elements.
    """
    check(math.prod(old) == math.prod(new), "view", f"{math.prod(old)} elements", tuple(new))
    sizes: dict[str, int] = {}
    even: list[str] = []
    before, after = ["_"] * len(old), ["_"] * len(new)
    for old_dim, new_dim in _outermost(old, new):
        name, size = f"dim{new_dim}", math.gcd(old[old_dim], new[new_dim])
        if size > 1:
            sizes[name] = size
            before[old_dim] = after[new_dim] = name
            even += [name] * (not size == old[old_dim] == new[new_dim])
    names = " ".join(even)
    return rule_of(sizes, [" ".join(before)], [" ".join(after)], linear=[(0,)], even=names)


def _outermost(old: Shape, new: Shape) -> Iterator[tuple[int, int]]:
    """The first dims on both sides of every smallest group of dims with equal products."""
    if 0 in old:
        return
    left = [dim for dim, size in enumerate(old) if size != 1]
    right = [dim for dim, size in enumerate(new) if size != 1]
    while left:
        yield left[0], right[0]
        a, b = old[left.pop(0)], new[right.pop(0)]
        while a != b:
            if a < b:
                a *= old[left.pop(0)]
            else:
                b *= new[right.pop(0)]


def permute_rule(shape: Shape, order: Sequence[int]) -> OpRule:
    """Dims in another order; a transposition is one.

    >>> permute_rule((2, 8, 6), (0, 2, 1)).outputs
    ((0, 2, 1),)
    """
    names = dim_names(len(shape))
    found = [names[dim_from_front(dim, len(shape))] for dim in order]
    if sorted(found) != sorted(names):
        raise fail("order", f"every dim below {len(shape)} once", tuple(order))
    sizes = dict(zip(names, shape, strict=True))
    return rule_of(sizes, [" ".join(names)], [" ".join(found)], linear=[(0,)])


def expand_rule(old: Shape, new: Shape) -> OpRule:
    """Dims of size 1, and new dims in front, repeated. Ranks repeat for their run.

    >>> expand_rule((8, 1), (2, 8, 4)).inputs
    ((1, None),)
    """
    names = dim_names(len(new))
    sizes = dict(zip(names, new, strict=True))
    inner = names[len(new) - len(old) :]
    for name, size in zip(inner, old, strict=True):
        check(size in (1, sizes[name]), "expand", f"sizes of {tuple(old)} where not 1", tuple(new))
    return rule_of(sizes, [spread(inner, old, sizes)], [" ".join(names)], linear=[(0,)])
