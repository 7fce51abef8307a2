"""``OpRule``: along which factors an operation can be cut, and what that does to its tensors.

Needs no torch.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from blocks._checks import check, check_count, fail, reading
from blocks.sharding.product import Product

FactorKind = Literal["parallel", "sum", "max", "whole"]
"""What ranks that each take a run of a factor are left with in the outputs that lack it:

parallel: every output has it, so every rank holds a run of each;
sum: addends of the output;
max: candidates, of which an all-reduce inside of the operation takes the largest;
whole: it cannot be cut.
"""


@dataclasses.dataclass(frozen=True)
class Factor:
    """An index an operation runs over: a row, a column, a head, a channel, ...

    name: as a reader would call it, ``row``.
    size: how long it is.
    kind: what cutting it leaves.
    even: ranks must divide ``size``; so where a tensor dim is the factor times something.
    inner_bytes: what the operation all-reduces inside of itself where this factor is cut, whatever
        the other factors do; bytes of the tensors as they are before any cut.

    >>> Factor("contraction", 64, "sum")
    Factor(contraction=64 sum)
    """

    name: str
    size: int
    kind: FactorKind = "parallel"
    even: bool = False
    inner_bytes: int = 0

    def __post_init__(self) -> None:
        check_count(f"size of factor {self.name}", self.size)
        check(self.kind in get_args(FactorKind), "kind", get_args(FactorKind), repr(self.kind))

    def __repr__(self) -> str:
        return f"Factor({self.name}={self.size} {self.kind}{' even' if self.even else ''})"


Dims = tuple[int | None, ...]
"""For every dim of a tensor the index of the factor that runs along it; None for none."""


@dataclasses.dataclass(frozen=True)
class OpRule:
    """How an operation may be split: the einsum-like map from tensor dims to factors.

    factors: what the operation runs over; one mesh axis cuts at most one of them.
    inputs, outputs: the factors along the dims of every tensor it reads and makes. A factor stands
        for at most one dim of a tensor. Tensors without the factor that is cut are replicated, and
        outputs without it are what the factor's kind says.
    linear: sets of inputs that may be addends of a sum together while the others are replicated;
        all outputs are addends then. ``((0, 1),)`` for an addition, ``((0,), (1,))`` for a product.
    flops_per_point: floating point operations for each point of the product of all factors; 0 for
        operations whose time is that of the memory they touch.
    inner: rows, columns and depth of the product of matrices that a point is: places and taps of a
        convolution.
    gathered_itemsize: of the elements that the operation gathers inside of itself, from parts that
        lie as its first output does to the whole on every rank; 0 where it does not.

    >>> matmul = OpRule(
    ...     (Factor("row", 8), Factor("column", 4), Factor("contraction", 6, "sum")),
    ...     inputs=((0, 2), (2, 1)), outputs=((0, 1),), linear=((0,), (1,)), flops_per_point=2)
    >>> matmul.flops()
    384

    Reference:
        Zheng et al., "Alpa", 2022, table 3 (the batched matmul); Rajbhandari et al. and the
        OpenXLA Shardy documentation (factors of an operation).
    """

    factors: tuple[Factor, ...]
    inputs: tuple[Dims, ...]
    outputs: tuple[Dims, ...]
    linear: tuple[tuple[int, ...], ...] = ()
    flops_per_point: int = 0
    inner: tuple[int, int, int] = (1, 1, 1)
    gathered_itemsize: int = 0

    def __post_init__(self) -> None:
        for dims in (*self.inputs, *self.outputs):
            used = [dim for dim in dims if dim is not None]
            known = all(0 <= dim < len(self.factors) for dim in used)
            check(known, "dims", f"factors below {len(self.factors)}", dims)
            check(len(set(used)) == len(used), "dims", "each factor once in a tensor", dims)
        for index, factor in enumerate(self.factors):
            everywhere = all(index in dims for dims in self.outputs)
            if factor.kind == "parallel" and not everywhere:
                raise fail(f"factor {factor.name}", "parallel in every output", self.outputs)
        for together in self.linear:
            known = all(0 <= at < len(self.inputs) for at in together) and bool(together)
            check(known, "linear", f"inputs below {len(self.inputs)}", together)

    def index(self, name: str) -> int:
        """Which factor has this name."""
        names = [factor.name for factor in self.factors]
        check(name in names, "factor", f"one of {names}", repr(name))
        return names.index(name)

    def flops(self) -> int:
        """Floating point operations of the whole operation."""
        return self.flops_of([factor.size for factor in self.factors])

    def flops_of(self, sizes: Any) -> int:
        """Floating point operations where the factors are as long as ``sizes`` says."""
        total = self.flops_per_point
        for size in sizes:
            total *= size
        return total

    def product_of(self, sizes: Sequence[int]) -> Product | None:
        """The operation as a product of matrices where the factors are as long as ``sizes`` says;
        None for what is none.

        Factors of both inputs and the output number the products, those of the first and the
        output are rows, those of the second and the output columns, all others depth.

        >>> rule = OpRule((Factor("row", 8), Factor("column", 4), Factor("contraction", 6, "sum")),
        ...               inputs=((0, 2), (2, 1)), outputs=((0, 1),), flops_per_point=2)
        >>> rule.product_of((8, 2, 6))
        Product(count=1, rows=8, columns=2, depth=6)
        """
        if self._roles is None:
            return None
        found = [1, *self.inner]
        for role, size in zip(self._roles, sizes, strict=True):
            found[role] *= size
        return Product(*found)

    @functools.cached_property
    def _roles(self) -> tuple[int, ...] | None:
        """For every factor which size of a ``Product`` it is part of."""
        inputs = list(self.inputs)
        two_to_one = len(inputs) >= 2 and len(self.outputs) == 1
        if not two_to_one or self.flops_per_point != 2 * math.prod(self.inner):
            return None
        first, second = inputs[:2]
        if any(dim not in self.outputs[0] for dims in inputs[2:] for dim in dims):
            return None  # a bias is no more than added
        roles = {(True, True): 0, (True, False): 1, (False, True): 2, (False, False): 0}
        return tuple(
            roles[at in first, at in second] if at in self.outputs[0] else 3
            for at in range(len(self.factors))
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "OpRule":
        """
        Raises:
            ValueError: data that is no rule.
        """
        before = {"inner": (1, 1, 1), "gathered_itemsize": 0}  # in files without such fields
        if isinstance(data, Mapping):
            data = {**before, **data}
        with reading("operation rule", data, cls):
            tuples = {
                name: tuple(tuple(part) for part in data[name])
                for name in ("inputs", "outputs", "linear")
            }
            factors = tuple(Factor(**factor) for factor in data["factors"])
            flops, (rows, columns, depth) = data["flops_per_point"], data["inner"]
            inner, gathered = (rows, columns, depth), data["gathered_itemsize"]
            return cls(
                factors, **tuples, flops_per_point=flops, inner=inner, gathered_itemsize=gathered
            )
