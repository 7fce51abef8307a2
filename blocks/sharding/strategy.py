"""``Strategy``: what every mesh axis does to one operation. Needs no torch."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from blocks._checks import check
from blocks.sharding.mesh import Mesh
from blocks.sharding.op_rule import Dims, OpRule
from blocks.sharding.placement import Partial, Placement, Replicate, Shard, run_of

REPLICATE = -1
"""The choice of an axis that cuts nothing: all its ranks do the same."""


class Strategy(NamedTuple):
    """How an operation is spread over a mesh.

    choices: for every mesh axis the index of the factor it cuts; ``REPLICATE`` (-1) for none;
        ``-2 - k`` where the inputs ``rule.linear[k]`` are addends of a sum.
    inputs, outputs: what that asks of the tensors read and says of those made: for every tensor
        a placement an axis.
    """

    choices: tuple[int, ...]
    inputs: tuple[tuple[Placement, ...], ...]
    outputs: tuple[tuple[Placement, ...], ...]

    def __str__(self) -> str:
        def tensors(placements: tuple[tuple[Placement, ...], ...]) -> str:
            return ", ".join("".join(map(str, one)) for one in placements)

        return f"{tensors(self.inputs)} -> {tensors(self.outputs)}"


def strategy_of(rule: OpRule, choices: Sequence[int]) -> Strategy:
    """The strategy whose axes choose as given.

    >>> from blocks.sharding.op_rule import Factor
    >>> mm = OpRule((Factor("i", 8), Factor("j", 4), Factor("k", 6, "sum")),
    ...             inputs=((0, 2), (2, 1)), outputs=((0, 1),))
    >>> print(strategy_of(mm, (0, 2)))
    S(0)S(1), RS(0) -> S(0)P(sum)

    Raises:
        ValueError: a choice that the rule does not have.
    """
    for choice in choices:
        known = -2 - len(rule.linear) < choice < len(rule.factors)
        check(known, "choice", f"{-1 - len(rule.linear)} to {len(rule.factors) - 1}", choice)
        cut = choice < 0 or rule.factors[choice].kind != "whole"
        check(cut, "choice", "a factor that can be cut", choice)
    inputs = tuple(
        tuple(_of_input(rule, choice, at) for choice in choices) for at in range(len(rule.inputs))
    )
    outputs = tuple(
        tuple(_of_output(rule, choice, dims) for choice in choices) for dims in rule.outputs
    )
    return Strategy(tuple(choices), inputs, outputs)


def strategies(rule: OpRule, mesh: Mesh) -> tuple[Strategy, ...]:
    """Every strategy of an operation on a mesh, the one that replicates everything first.

    An axis of one rank only replicates. Left out is what would leave a rank without work, or cut
    an even factor unevenly.

    >>> from blocks.sharding.op_rule import Factor
    >>> mm = OpRule((Factor("i", 8), Factor("j", 4), Factor("k", 6, "sum")),
    ...             inputs=((0, 2), (2, 1)), outputs=((0, 1),))
    >>> len(strategies(mm, Mesh.of(data=2, tensor=2)))
    16
    """
    cut = [index for index, factor in enumerate(rule.factors) if factor.kind != "whole"]
    every = [REPLICATE, *cut, *(-2 - k for k in range(len(rule.linear)))]
    per_axis = [every if size > 1 else [REPLICATE] for size in mesh.sizes]
    found = itertools.product(*per_axis)
    return tuple(strategy_of(rule, choices) for choices in found if fits(rule, choices, mesh))


def local_sizes(rule: OpRule, strategy: Strategy, mesh: Mesh, rank: int) -> tuple[int, ...]:
    """How long every factor is for one rank."""
    sizes = [factor.size for factor in rule.factors]
    at = mesh.coordinates(rank)
    for choice, num_ranks, coordinate in zip(strategy.choices, mesh.sizes, at, strict=True):
        if choice >= 0:
            sizes[choice] = run_of(sizes[choice], num_ranks, coordinate).size
    return tuple(sizes)


def _of_input(rule: OpRule, choice: int, at: int) -> Placement:
    if choice < REPLICATE:
        return Partial() if at in rule.linear[-2 - choice] else Replicate()
    return _along(rule.inputs[at], choice)


def _of_output(rule: OpRule, choice: int, dims: Dims) -> Placement:
    if choice < REPLICATE:
        return Partial()
    placement = _along(dims, choice)
    if placement == Replicate() and choice >= 0 and rule.factors[choice].kind == "sum":
        return Partial()
    return placement


def _along(dims: Dims, choice: int) -> Placement:
    return Shard(dims.index(choice)) if choice >= 0 and choice in dims else Replicate()


def fits(rule: OpRule, choices: Sequence[int], mesh: Mesh) -> bool:
    """Whether an operation of these sizes can be cut so on a mesh: every rank has work, the last
    one too, and even factors are cut evenly."""
    sizes = [factor.size for factor in rule.factors]
    for choice, num_ranks in zip(choices, mesh.sizes, strict=True):
        if choice < 0:
            continue
        if rule.factors[choice].even and sizes[choice] % num_ranks:
            return False
        if run_of(sizes[choice], num_ranks, num_ranks - 1).size == 0:
            return False
        sizes[choice] = run_of(sizes[choice], num_ranks, num_ranks - 1).size
    return True
