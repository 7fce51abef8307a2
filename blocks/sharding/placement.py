"""What a mesh axis does to a tensor: ``Shard``, ``Replicate`` or ``Partial``. Needs no torch."""

import dataclasses
import re
from typing import NamedTuple

from blocks._checks import check, fail


@dataclasses.dataclass(frozen=True)
class Shard:
    """Every rank along the axis holds a run of a tensor dim.

    Runs are as long as ``torch.chunk`` makes them: ``ceil(size / num_ranks)``, what is left for
    the last, and nothing for those behind it.

    >>> Shard(0), str(Shard(1))
    (Shard(dim=0), 'S(1)')
    """

    dim: int

    def __post_init__(self) -> None:
        ok = isinstance(self.dim, int) and self.dim >= 0
        check(ok, "dim", "a tensor dim from 0", self.dim, "count from the first dim")

    def __str__(self) -> str:
        return f"S({self.dim})"


@dataclasses.dataclass(frozen=True)
class Replicate:
    """Every rank along the axis holds the same."""

    def __str__(self) -> str:
        return "R"


@dataclasses.dataclass(frozen=True)
class Partial:
    """Every rank along the axis holds an addend; the tensor is their sum.

    >>> Partial(), str(Partial())
    (Partial(sum), 'P(sum)')
    """

    def __repr__(self) -> str:
        return "Partial(sum)"

    def __str__(self) -> str:
        return "P(sum)"


Placement = Shard | Replicate | Partial


def parse_placement(text: str) -> Placement:
    """The placement that ``str`` prints as ``text``.

    >>> parse_placement("S(2)")
    Shard(dim=2)

    Raises:
        ValueError: a text that is none.
    """
    found = re.fullmatch(r"S\((\d+)\)", text)
    if found:
        return Shard(int(found[1]))
    others = {str(placement): placement for placement in (Replicate(), Partial())}
    if text not in others:
        raise fail("placement", "S(dim), R or P(sum)", repr(text))
    return others[text]


class Run(NamedTuple):
    """A half-open range of a tensor dim."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def run_of(size: int, num_ranks: int, index: int) -> Run:
    """The part of a dim of ``size`` that the rank at ``index`` of ``num_ranks`` holds.

    >>> [run_of(5, 4, i).size for i in range(4)]
    [2, 2, 1, 0]
    """
    check(0 <= index < num_ranks, "index", f"below num_ranks ({num_ranks})", index)
    chunk = -(-size // num_ranks)
    return Run(min(index * chunk, size), min((index + 1) * chunk, size))
