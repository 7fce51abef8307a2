"""``einsum`` of two tensors as one batched matrix product."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blocks._checks import check
from recipes.plan.execute.local_call import LocalCall


def contracted(call: LocalCall, target: Any, equation: str, operands: Sequence[Tensor]) -> Tensor:
    """``einsum``; element by element where nothing is summed."""
    terms, _, result = equation.partition("->")
    if len(operands) != 2 or set(terms) - {","} <= set(result):
        return target(equation, operands)
    return product(equation, *operands)


def product(equation: str, a: Tensor, b: Tensor) -> Tensor:
    """``torch.einsum(equation, a, b)`` by one ``bmm``, or ``mm`` where nothing is a batch.

    >>> a, b = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
    >>> torch.equal(product("ij,kj->ik", a, b), a @ b.T)
    True

    Raises:
        ValueError: a letter of one operand alone that the result lacks.
    """
    terms, _, result = equation.replace(" ", "").partition("->")
    first, second = terms.split(",")
    batch = [x for x in result if x in first and x in second]
    rows = [x for x in result if x in first and x not in second]
    columns = [x for x in result if x in second and x not in first]
    inner = [x for x in first if x in second and x not in result]
    alone = set(first) ^ set(second)
    check(alone <= set(result), "equation", "no letter summed in one operand", equation)
    sizes = dict(zip(first, a.shape, strict=True)) | dict(zip(second, b.shape, strict=True))

    def matrices(x: Tensor, letters: str, *groups: list[str]) -> Tensor:
        order = [letters.index(letter) for group in groups for letter in group]
        shape = [math.prod(sizes[letter] for letter in group) for group in groups]
        return x.permute(order).reshape(shape)

    if batch:
        left, right = (
            matrices(a, first, batch, rows, inner),
            matrices(b, second, batch, inner, columns),
        )
        found = torch.bmm(left, right)
    else:
        left, right = matrices(a, first, rows, inner), matrices(b, second, inner, columns)
        found = torch.mm(left, right)
    made = [*batch, *rows, *columns]
    found = found.view([sizes[letter] for letter in made])
    return found.permute([made.index(letter) for letter in result])
