"""Lookups, and what is added back, with rows cut: each rank sees to the indices in its run."""

from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.sharding import Run, rules
from blocks.sharding.rule_audit import RankShare
from tests.sharding.rule_cases.case import Case, case, floats, indices, shape, size

aten = torch.ops.aten


def within(index: Tensor, run: Run) -> tuple[Tensor, Tensor]:
    """Indices counted from where a run begins, 0 for those elsewhere; and which are in it."""
    mine = (index >= run.start) & (index < run.stop)
    return torch.where(mine, index - run.start, 0), mine


@case("embedding_rule", "embedding_backward_rule")
def embedding(rng: Random, name: str) -> Case:
    weight, at = floats(size(rng), size(rng)), shape(rng, 0, 1, 2)
    index = indices(weight.shape[0], *at)

    def masked(share: RankShare, weight: Tensor, index: Tensor) -> Tensor:
        local, mine = within(index, share.runs["vocab"])
        return aten.embedding(weight, local) * mine[..., None]

    if name == "embedding_rule":
        return Case(rules.embedding_rule(weight.shape, at), [weight, index], aten.embedding, masked)

    def backward(grad: Tensor, index: Tensor) -> Tensor:
        return aten.embedding_dense_backward(grad, index, weight.shape[0], -1, False)

    def masked_backward(share: RankShare, grad: Tensor, index: Tensor) -> Tensor:
        run = share.runs["vocab"]
        local, mine = within(index, run)
        return aten.embedding_dense_backward(grad * mine[..., None], local, run.size, -1, False)

    grad = floats(*at, weight.shape[1])
    rule = rules.embedding_backward_rule(grad.shape, weight.shape[0])
    return Case(rule, [grad, index], backward, masked_backward)


@case("index_rule", "index_add_rule", "index_add_rule onto zeros")
def along_one_dim(rng: Random, name: str) -> Case:
    x = floats(*shape(rng, 1, 2, 3))
    dim = rng.randrange(x.ndim)
    index = indices(x.shape[dim], *shape(rng, 1, 2))
    before = (slice(None),) * dim

    def spread(mine: Tensor) -> Tensor:
        return mine.reshape(*mine.shape, *[1] * (x.ndim - dim - 1))

    def look_up(share: RankShare, x: Tensor, index: Tensor) -> Tensor:
        local, mine = within(index, share.runs["entry"])
        return x[(*before, local)] * spread(mine)

    def add(x: Tensor, index: Tensor, values: Tensor) -> Tensor:
        return x.index_put((*before_full(x), index), values, accumulate=True)

    def before_full(x: Tensor) -> tuple[Tensor, ...]:
        """``index_put`` takes no slices: the indices of all dims in front."""
        rest = index.ndim
        return tuple(
            torch.arange(n).reshape(*[1] * d, -1, *[1] * (dim - d - 1 + rest))
            for d, n in enumerate(x.shape[:dim])
        )

    def add_mine(share: RankShare, x: Tensor, index: Tensor, values: Tensor) -> Tensor:
        local, mine = within(index, share.runs["entry"])
        return add(x, local, values * spread(mine))

    if name == "index_rule":
        rule = rules.index_rule(x.shape, index.shape, dim)
        return Case(rule, [x, index], lambda x, i: x[(*before, i)], look_up)
    zeros = name.endswith("zeros")
    values = floats(*x.shape[:dim], *index.shape, *x.shape[dim + 1 :])
    rule = rules.index_add_rule(x.shape, index.shape, dim, onto_zeros=zeros)
    return Case(rule, [x * (not zeros), index, values], add, add_mine)


@case("index_many_rule")
def along_many_dims(rng: Random, name: str) -> Case:
    x = floats(*(size(rng) for _ in range(3)))
    at = sorted(rng.sample(range(3), rng.choice([1, 2])))
    count = size(rng)
    picks = [indices(x.shape[dim], *rng.choice([[count], [count, 1], [2, 1, count]])) for dim in at]
    given: list[Tensor | None] = [None] * 3
    for dim, pick in zip(at, picks, strict=True):
        given[dim] = pick
    output = aten.index(x, given)

    def look_up(x: Tensor, *parts: Tensor) -> Tensor:
        left = list(parts)
        return aten.index(x, [None if index is None else left.pop(0) for index in given])

    shapes = [None if index is None else index.shape for index in given]
    return Case(rules.index_many_rule(x.shape, shapes, output.shape), [x, *picks], look_up)


@case("gather_rule", "gather_backward_rule", "scatter_rule", "scatter_rule onto zeros")
def gather(rng: Random, name: str) -> Case:
    x = floats(*shape(rng, 1, 2, 3))
    dim = rng.randrange(x.ndim)
    of_index = [n if d == dim or rng.random() < 0.7 else rng.randint(1, n)
                for d, n in enumerate(x.shape)]  # fmt: skip
    of_index[dim] = rng.randint(1, 2 * x.shape[dim])
    index, given = indices(x.shape[dim], *of_index), dim - rng.choice([0, x.ndim])
    grad = floats(*of_index)

    def add(into: Tensor, index: Tensor, values: Tensor) -> Tensor:
        return into.scatter_add(dim, index, values)

    def add_mine(share: RankShare, into: Tensor, index: Tensor, values: Tensor) -> Tensor:
        local, mine = within(index, share.runs["entry"])
        return add(into, local, values * mine)

    def look_up(share: RankShare, x: Tensor, index: Tensor) -> Tensor:
        local, mine = within(index, share.runs["entry"])
        return x.gather(dim, local) * mine

    shapes = (x.shape, index.shape, given)
    if name == "gather_rule":
        rule = rules.gather_rule(*shapes)
        return Case(rule, [x, index], lambda x, i: x.gather(dim, i), look_up)
    if name == "gather_backward_rule":
        return Case(
            rules.gather_backward_rule(*shapes),
            [grad, index],
            lambda g, i: add(torch.zeros_like(x), i, g),
            lambda share, g, i: add_mine(share, x.new_zeros(share.local_shapes[0]), i, g),
        )
    zeros = name.endswith("zeros")
    rule = rules.scatter_rule(*shapes, onto_zeros=zeros)
    return Case(rule, [x * (not zeros), index, grad], add, add_mine)


@case("one_hot_rule")
def one_hot(rng: Random, name: str) -> Case:
    num_classes, at = size(rng), shape(rng, 0, 1, 2)
    return Case(
        rules.one_hot_rule(at, num_classes),
        [indices(num_classes, *at)],
        lambda i: F.one_hot(i, num_classes),
        lambda share, i: (i[..., None] == torch.arange(*share.runs["class"])).long(),
    )
