"""``Case``: a rule, the tensors of one operation, what it does whole and what on a rank."""

from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor

from blocks.sharding import Mesh, OpRule
from blocks.sharding.rule_audit import Operation, audit_rule

MESHES = (Mesh.of(a=2), Mesh.of(a=3), Mesh.of(a=4), Mesh.of(a=2, b=2))


class Case(NamedTuple):
    """See ``audit_rule``."""

    rule: OpRule
    inputs: Sequence[Tensor]
    operation: Operation
    local: Operation | None = None

    def audit(self) -> int:
        """Every strategy on 2, 3 and 4 ranks; how many there are."""
        return sum(
            audit_rule(self.rule, self.inputs, self.operation, mesh, local=self.local)
            for mesh in MESHES
        )


Draw = Callable[[Random, str], Case]
CASES: dict[str, Draw] = {}
"""What is audited: the name of a rule, and which use of it; drawn with (generator, name)."""


def case(*names: str) -> Callable[[Draw], Draw]:
    """Adds what a function draws, under the names it can draw."""

    def add(draw: Draw) -> Draw:
        assert not set(names) & set(CASES)
        CASES.update(dict.fromkeys(names, draw))
        return draw

    return add


def size(rng: Random) -> int:
    """Sizes that 2, 3 or 4 ranks share evenly or not, or that are too small for them."""
    return rng.choice([4, 3, 5, 7, 8, 2, 1])


def shape(rng: Random, *counts: int) -> tuple[int, ...]:
    """A shape of one of so many dims."""
    return tuple(size(rng) for _ in range(rng.choice(counts)))


def floats(*sizes: int) -> Tensor:
    """Random numbers, the same for the same shape."""
    generator = torch.Generator().manual_seed(sum(sizes) + len(sizes))
    return torch.randn(sizes, dtype=torch.float64, generator=generator)


def indices(stop: int, *sizes: int) -> Tensor:
    """Random indices below ``stop``."""
    generator = torch.Generator().manual_seed(sum(sizes) + stop)
    return torch.randint(stop, sizes, generator=generator)
