"""Gradients of the rotary embedding: the rotation back."""

import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blocks.ops import _rope, apply_rope, rope_frequencies, rope_table
from tests.numerics import assert_close, assert_like_torch

FAST = ["native", "triton"]


def heads(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(query: Tensor, key: Tensor, dquery: Tensor, dkey: Tensor, *where, **options):
    leaves = [t.clone().requires_grad_() for t in (query, key)]
    turned = apply_rope(*leaves, *where, **options)
    return torch.autograd.grad(turned, leaves, (dquery, dkey))


@pytest.mark.parametrize("impl", FAST)
@given(
    num_tokens=st.integers(0, 5),
    counts=st.tuples(st.integers(1, 4), st.integers(1, 2)),
    half=st.sampled_from([1, 7, 8, 16, 20]),
    passing_dims=st.integers(0, 5),
    interleaved=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_gradients_equal_the_references(
    impl,
    num_tokens: int,
    counts: tuple[int, int],
    half: int,
    passing_dims: int,
    interleaved: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    shapes = [(num_tokens, count, 2 * half + passing_dims) for count in counts]
    query, key, dquery, dkey = (
        heads(seed + i, *shapes[i % 2], dtype=dtype) for i in range(4)
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(0, 50, (num_tokens,), generator=generator)
    table = rope_table(rope_frequencies(2 * half), 50)
    where = (query, key, dquery, dkey, positions, table)
    actual = gradients(*where, interleaved=interleaved, impl=impl)
    expected = gradients(*where, interleaved=interleaved, impl="reference")
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == dtype
        assert_close(a, e)


@pytest.mark.parametrize("counts", [(5, 2), (4, 4), (7, 3)])
def test_a_token_of_several_tiles(counts: tuple[int, int], monkeypatch) -> None:
    monkeypatch.setattr(_rope, "TILE_PAIRS", 16)
    assert _rope.rope_tiles(8, 0)[0] == 2
    query, key, dquery, dkey = (heads(i, 3, counts[i % 2], 20) for i in range(4))
    where = (torch.tensor([5, 0, 3]), rope_table(rope_frequencies(16), 8))
    found = apply_rope(query, key, *where, impl="triton")
    for a, e in zip(found, apply_rope(query, key, *where, impl="reference"), strict=True):
        assert_close(a, e)
    actual = gradients(query, key, dquery, dkey, *where, impl="triton")
    expected = gradients(query, key, dquery, dkey, *where, impl="reference")
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("impl", FAST)
def test_turning_the_gradient_forth_gives_it_back(impl) -> None:
    query, key, dquery, dkey = (heads(i, 4, 2, 16) for i in range(4))
    where = (torch.arange(4), rope_table(rope_frequencies(16), 8))
    back = gradients(query, key, dquery, dkey, *where, impl=impl)
    forth = apply_rope(back[0], back[1], *where, impl=impl)
    assert_close(forth[0], dquery)
    assert_close(forth[1], dkey)


def test_triton_gradients_in_fp16_are_no_worse_than_torchs() -> None:
    given = [heads(i, 5, 2, 32, dtype=torch.float16) for i in range(4)]
    table = rope_table(rope_frequencies(32), 8)
    actual = gradients(*given, torch.arange(5), table, impl="triton")
    cos, sin = table[:5, None].chunk(2, dim=-1)

    def eager(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    for a, dy in zip(actual, given[2:], strict=True):
        torchs = eager(dy, cos.half(), -sin.half())
        assert_like_torch(a, torchs, eager(dy.double(), cos.double(), -sin.double()))


def test_the_references_gradient_is_that_of_the_function() -> None:
    table = rope_table(rope_frequencies(4), 8).double()
    query, key = (heads(i, 3, 1, 6).double().requires_grad_() for i in (0, 1))

    def turned(query: Tensor, key: Tensor):
        cos, sin = table[:3, None].chunk(2, dim=-1)
        found = []
        for x in (query, key):
            a, b, rest = x[..., :2], x[..., 2:4], x[..., 4:]
            found.append(torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1))
        return tuple(found)

    assert torch.autograd.gradcheck(turned, (query, key))
    dy = (heads(2, 3, 1, 6), heads(3, 3, 1, 6))
    exact = torch.autograd.grad(turned(query, key), (query, key), dy)
    single = (query.detach().float(), key.detach().float(), *dy)
    for a, e in zip(gradients(*single, torch.arange(3), table.float()), exact, strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("impl", FAST)
def test_a_fused_projection_gets_its_gradient_and_an_unused_half_none(impl) -> None:
    fused = heads(0, 5, 3 * 16).requires_grad_()
    table = rope_table(rope_frequencies(16), 8)
    found = {}
    for how in ("reference", impl):
        query, key, _ = fused.unflatten(1, (3, 16)).split((1, 1, 1), dim=1)
        turned = apply_rope(query, key, torch.arange(5), table, impl=how)
        upstream = heads(1, 1, 5, 16).transpose(0, 1)  # not contiguous
        found[how] = torch.autograd.grad(turned[1], fused, upstream)[0]
    assert_close(found[impl], found["reference"])
    assert (found[impl][:, :16] == 0).all()


@pytest.mark.parametrize("impl", FAST)
def test_the_operator_keeps_its_promises(impl) -> None:
    query, key = heads(0, 3, 2, 20).requires_grad_(), heads(1, 3, 1, 20).requires_grad_()
    table = rope_table(rope_frequencies(16), 8)
    for interleaved in (False, True):
        given = (query, key, torch.arange(3), table, interleaved, False, impl)
        torch.library.opcheck(_rope.ROPE.operator, given)


@pytest.mark.parametrize("impl", [None, *FAST])
def test_in_place_with_gradients_is_refused_before_anything_is_written(impl) -> None:
    query = heads(0, 2, 1, 8).requires_grad_()
    table = rope_table(rope_frequencies(8), 8)
    with pytest.raises(ValueError, match="inplace: expected no gradients"):
        apply_rope(query, query, torch.arange(2), table, inplace=True, impl=impl)
    assert torch.equal(query, heads(0, 2, 1, 8))


@pytest.mark.parametrize("impl", [None, "triton", "reference"])
def test_a_position_outside_the_table_is_refused_with_gradients_too(impl) -> None:
    query = heads(0, 2, 1, 8).requires_grad_()
    table = rope_table(rope_frequencies(8), 8)
    for outside in (-1, 8):
        with pytest.raises(ValueError, match="positions: expected within"):
            inspect.unwrap(apply_rope)(query, query, torch.tensor([0, outside]), table, impl=impl)


def test_a_table_that_learns_takes_the_reference() -> None:
    query = heads(0, 2, 1, 8)
    table = rope_table(rope_frequencies(8), 8).requires_grad_()
    turned = apply_rope(query, query, torch.arange(2), table)
    (found,) = torch.autograd.grad(turned[0].sum(), table)
    assert found[1].abs().sum() > 0
    with pytest.raises(ValueError, match="differentiable implementation"):
        apply_rope(query, query, torch.arange(2), table, impl="triton")
