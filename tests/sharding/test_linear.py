"""Cut layers equal whole ones, forward and backward, in float64, for even and uneven cuts."""

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from blocks.sharding import (
    Group,
    LocalGroup,
    Replicate,
    Shard,
    ShardingSpec,
    column_linear,
    identity,
    row_linear,
    run_local,
    vocab_cross_entropy,
    vocab_embedding,
)
from tests.numerics import assert_close
from tests.sharding.spmd import line, spmd

TOKENS, WIDTH, INNER, VOCAB = 6, 5, 8, 11


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def compare(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Values and gradients of a random weighting."""
    assert_close(found, expected)
    weight = torch.randn(expected.shape, dtype=torch.float64)
    grads = torch.autograd.grad((found * weight).sum(), inputs)
    expected_grads = torch.autograd.grad((expected * weight).sum(), inputs)
    for i, (grad, whole) in enumerate(zip(grads, expected_grads, strict=True)):
        assert_close(grad, whole, what=f"gradient {i}")


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_pair_of_layers(size: int, sequence: bool) -> None:
    mesh = line(size)
    num_tokens = TOKENS if sequence else None
    x, up, down = normal(TOKENS, WIDTH), normal(INNER, WIDTH), normal(WIDTH, INNER)
    up_bias, down_bias = normal(INNER, seed=1), normal(WIDTH, seed=2)
    outside = Shard(0) if sequence else Replicate()
    # with sequence parallelism the last bias sees a run of the tokens: its gradients are addends
    sources = [outside, Shard(0), Shard(0), Shard(1), Replicate()]

    def program(
        rank: int, groups: Mapping[str, Group], x: Tensor, up: Tensor, up_bias: Tensor,
        down: Tensor, down_bias: Tensor,
    ) -> Tensor:  # fmt: skip
        group = groups["tensor"]
        if sequence:
            down_bias = identity(down_bias, group)
        inner = column_linear(x, up, up_bias, group, num_tokens=num_tokens)
        return row_linear(inner.tanh(), down, down_bias, group, num_tokens=num_tokens)

    inputs = [x, up, up_bias, down, down_bias]
    specs = [ShardingSpec.of(mesh, tensor=p) for p in sources]
    found = spmd(program, specs, ShardingSpec.of(mesh, tensor=outside), *inputs)
    expected = F.linear(F.linear(x, up, up_bias).tanh(), down, down_bias)
    compare(found, expected, inputs)


@pytest.mark.parametrize("sequence", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_embedding(size: int, sequence: bool) -> None:
    mesh = line(size)
    ids, table = torch.tensor([0, 10, 3, 3, 5, 9]), normal(VOCAB, WIDTH)
    outside = Shard(0) if sequence else Replicate()

    def program(rank: int, groups: Mapping[str, Group], table: Tensor) -> Tensor:
        num_tokens = TOKENS if sequence else None
        return vocab_embedding(ids, table, VOCAB, groups["tensor"], num_tokens=num_tokens)

    specs = [ShardingSpec.of(mesh, tensor=p) for p in (Shard(0), outside)]
    compare(spmd(program, specs[:1], specs[1], table), F.embedding(ids, table), [table])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_cross_entropy(size: int, reduction: str) -> None:
    mesh = line(size)
    labels = torch.tensor([0, 10, -100, 3, 5, 9])
    logits = normal(TOKENS, VOCAB)

    def program(rank: int, groups: Mapping[str, Group], part: Tensor) -> Tensor:
        return vocab_cross_entropy(part, labels, VOCAB, groups["tensor"], reduction=reduction)  # type: ignore

    specs = [ShardingSpec.of(mesh, tensor=p) for p in (Shard(1), Replicate())]
    found = spmd(program, specs[:1], specs[1], logits)
    expected = F.cross_entropy(logits, labels, reduction=reduction)
    compare(found, expected, [logits])


def test_cross_entropy_of_huge_scores_and_of_no_rows() -> None:
    mesh = line(3)
    labels = torch.tensor([2, 7])
    logits = torch.tensor([[1e4, -1e4] * 5 + [0.0], [-1e4] * 11])

    def program(rank: int, groups: Mapping[str, Group], part: Tensor) -> Tensor:
        return vocab_cross_entropy(part, labels, VOCAB, groups["tensor"], reduction="none")

    specs = [ShardingSpec.of(mesh, tensor=p) for p in (Shard(1), Replicate())]
    found = spmd(program, specs[:1], specs[1], logits)
    torch.testing.assert_close(found, F.cross_entropy(logits, labels, reduction="none"))

    def ignored(rank: int, groups: Mapping[str, Group], part: Tensor) -> Tensor:
        return vocab_cross_entropy(part, torch.tensor([-100, -100]), VOCAB, groups["tensor"])

    assert spmd(ignored, specs[:1], specs[1], logits).item() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_loss_is_alike_on_all_ranks_and_wide(dtype: torch.dtype) -> None:
    logits = normal(TOKENS, VOCAB).detach().to(dtype)
    labels = torch.tensor([0, 10, 1, 3, 5, 9])

    def work(rank: int, groups: Mapping[str, Group]) -> Tensor:
        part = logits.tensor_split([4, 8], 1)[rank].requires_grad_()
        return vocab_cross_entropy(part, labels, VOCAB, groups["tensor"]).detach()

    found = run_local(line(3), work)
    assert found[0].dtype == torch.float32
    assert all(torch.equal(found[0], other) for other in found)
    torch.testing.assert_close(found[0], F.cross_entropy(logits.float(), labels))


def test_a_pair_costs_two_all_reduces() -> None:
    """One forward, one backward, of the activations outside of the pair; nothing in between."""
    x, up, down = normal(TOKENS, WIDTH), normal(INNER, WIDTH), normal(WIDTH, INNER)

    def work(rank: int, groups: Mapping[str, Group]) -> list[int]:
        group = groups["tensor"]
        assert isinstance(group, LocalGroup)
        part = x.detach().clone().requires_grad_()
        rows = slice(4 * rank, 4 * rank + 4)
        inner = column_linear(part, up.detach()[rows], None, group)
        y = row_linear(inner, down.detach()[:, rows], None, group)
        sent = [group.num_bytes_sent]
        y.sum().backward()
        return [*sent, group.num_bytes_sent]

    each = TOKENS * WIDTH * 8
    assert run_local(line(2), work) == [[each, 2 * each]] * 2


def test_refusals() -> None:
    def wrong_rows(rank: int, groups: Mapping[str, Group]) -> Tensor:
        return vocab_embedding(torch.tensor([1]), torch.ones(4, 2), VOCAB, groups["tensor"])

    def wrong_reduction(rank: int, groups: Mapping[str, Group]) -> Tensor:
        logits = torch.ones(1, 6 - rank)
        return vocab_cross_entropy(
            logits, torch.tensor([1]), VOCAB, groups["tensor"], reduction="max"  # type: ignore
        )  # fmt: skip

    with pytest.raises(ValueError, match="vocabulary held"):
        run_local(line(2), wrong_rows)
    with pytest.raises((ValueError, TypeError), match="reduction"):
        run_local(line(2), wrong_reduction)
