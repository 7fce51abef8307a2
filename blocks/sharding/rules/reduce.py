"""Reductions over some of the dims."""

from collections.abc import Sequence
from typing import Literal, get_args

from blocks._checks import check
from blocks.sharding.op_rule import OpRule
from blocks.sharding.rules.rule_of import Shape, dim_from_front, dim_names, rule_of

Reduction = Literal["sum", "max", "whole"]
"""What ranks make of the runs they hold: an addend, a candidate, or nothing at all."""


def reduce_rule(
    shape: Shape,
    dims: Sequence[int] | None = None,
    *,
    keepdim: bool = False,
    kind: Reduction = "sum",
    itemsize: int = 4,
    num_outputs: int = 1,
) -> OpRule:
    """A reduction of a tensor of ``shape`` over ``dims``.

    Locally, a mean divides by the whole count, so it is a sum of addends as well; a minimum is the
    maximum of what it negates.

    Args:
        dims: None for all of them.
        kind: ``sum`` for sum and mean; ``max`` for amax, amin, any, all; ``whole`` for what needs
            every element at once: argmax, var, prod, norms.
        itemsize: bytes of an element of the output, which the ranks exchange under ``max``.
        num_outputs: all alike.

    >>> reduce_rule((8, 4), [-1]).factors
    (Factor(dim0=8 parallel), Factor(dim1=4 sum))
    """
    check(kind in get_args(Reduction), "kind", f"one of {get_args(Reduction)}", repr(kind))
    names = dim_names(len(shape))
    every = range(len(shape)) if dims is None else dims
    gone = {names[dim_from_front(dim, len(shape))] for dim in every}
    sizes = dict(zip(names, shape, strict=True))
    output_bytes = itemsize
    for name in names:
        output_bytes *= 1 if name in gone else sizes[name]
    result = ["_" if name in gone else name for name in names if keepdim or name not in gone]
    reduced = " ".join(sorted(gone))
    return rule_of(
        sizes,
        [" ".join(names)],
        [" ".join(result)] * num_outputs,
        linear=[(0,)] if kind == "sum" else [],
        reduced=reduced if kind == "max" else "",
        whole=reduced if kind == "whole" else "",
        inner_bytes=dict.fromkeys(gone, output_bytes) if kind == "max" else None,
    )
