"""``rule_of``: a rule written with the names of its factors."""

from collections.abc import Mapping, Sequence

from blocks._checks import fail
from blocks.sharding.op_rule import Dims, Factor, FactorKind, OpRule

Shape = Sequence[int]
"""Sizes of the dims of a tensor."""


def rule_of(
    sizes: Mapping[str, int],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    linear: Sequence[Sequence[int]] = (),
    flops_per_point: int = 0,
    inner: tuple[int, int, int] = (1, 1, 1),
    whole: str = "",
    even: str = "",
    reduced: str = "",
    inner_bytes: Mapping[str, int] | None = None,
) -> OpRule:
    """The rule of an operation whose tensors are given by the names of the factors along them.

    A factor that some output lacks is a sum, the others are parallel, but for those that are
    named.

    Args:
        sizes: of every factor. A factor of size 0 is left out.
        inputs, outputs: for every tensor the names along its dims, ``_`` for no factor.
        linear, flops_per_point, inner, inner_bytes: as ``OpRule`` and ``Factor`` have them.
        whole, even, reduced: names of factors that cannot be cut, can only be cut evenly, and
            leave candidates for a maximum.

    >>> mm = rule_of({"row": 8, "column": 4, "contraction": 6},
    ...              ["row contraction", "contraction column"], ["row column"])
    >>> mm.factors
    (Factor(row=8 parallel), Factor(column=4 parallel), Factor(contraction=6 sum))

    Raises:
        ValueError: a name without a size.
    """
    kept = [name for name, size in sizes.items() if size > 0]
    written = [tensor.split() for tensor in (*inputs, *outputs)]
    written += [tensor.split() for tensor in (whole, even, reduced)]
    for name in {name for names in written for name in names} - {"_", *sizes}:
        raise fail("factor", f"one of {list(sizes)}", repr(name))

    def dims(tensor: str) -> Dims:
        return tuple(kept.index(name) if name in kept else None for name in tensor.split())

    def kind(name: str) -> FactorKind:
        if name in whole.split():
            return "whole"
        if name in reduced.split():
            return "max"
        return "parallel" if all(name in tensor.split() for tensor in outputs) else "sum"

    factors = tuple(
        Factor(
            name, sizes[name], kind(name), name in even.split(), (inner_bytes or {}).get(name, 0)
        )
        for name in kept
    )
    nothing = len(kept) < len(sizes)  # no elements, no work
    return OpRule(
        factors,
        tuple(map(dims, inputs)),
        tuple(map(dims, outputs)),
        tuple(map(tuple, linear)),
        0 if nothing else flops_per_point,
        inner,
    )


def leading_names(count: int) -> list[str]:
    """What the dims of activations in front of their channels are called.

    >>> leading_names(1), leading_names(2), leading_names(3)
    (['row'], ['batch', 'sequence'], ['batch', 'dim1', 'dim2'])
    """
    if count <= 2:
        return [[], ["row"], ["batch", "sequence"]][count]
    return ["batch", *(f"dim{at}" for at in range(1, count))]


def dim_names(count: int) -> list[str]:
    """Names of dims of which nothing is known: ``dim0``, ``dim1``, ..."""
    return [f"dim{at}" for at in range(count)]


def dim_from_front(dim: int, count: int) -> int:
    """A dim counted from the front; a negative one is counted from the end.

    Raises:
        ValueError: a dim that a tensor of ``count`` dims does not have.
    """
    if not -count <= dim < count:
        raise fail("dim", f"{-count} to {count - 1}", dim)
    return dim % count


def spread(names: Sequence[str], shape: Shape, sizes: Mapping[str, int]) -> str:
    """The names along a tensor that is broadcast to ``sizes``: none where it is stretched."""
    return " ".join(
        name if size == sizes[name] else "_" for name, size in zip(names, shape, strict=True)
    )
