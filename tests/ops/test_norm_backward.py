"""Gradients of the norms: every implementation against the reference's, in eager and traced."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from blocks.ops import _norm, _norm_triton, layer_norm, rms_norm
from tests.numerics import assert_close, assert_like_torch

FAST = ["native", "triton"]
Options = dict[str, Any]


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(dtype)


def inputs(num_rows: int, hidden_size: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """x, weight, bias, residual, and gradients of the output and of the sum."""
    wide, thin = (num_rows, hidden_size), (hidden_size,)
    shapes = (wide, thin, thin, wide, wide, wide)
    return [rows(seed + i, *shape, dtype=dtype) for i, shape in enumerate(shapes)]


def call(kind: str, x: Tensor, weight: Tensor, bias: Tensor, **options: Any):
    if kind == "rms":
        return rms_norm(x, weight, **options)
    if kind == "gemma":
        return rms_norm(x, weight, weight_offset=1.0, **options)
    return layer_norm(x, weight, bias if kind == "layer" else None, **options)


def gradients(kind: str, impl: str | None, given: list[Tensor], *, with_residual: bool):
    """Gradients of x, weight, bias and residual, where there are any."""
    x, weight, bias, residual = (t.clone().requires_grad_() for t in given[:4])
    extra = {"residual": residual} if with_residual else {}
    found = call(kind, x, weight, bias, impl=impl, **extra)
    outputs = list(found) if with_residual else [found]
    wanted = [x, weight, *([bias] if kind == "layer" else []), *extra.values()]
    return torch.autograd.grad(outputs, wanted, given[4 : 4 + len(outputs)])


KINDS = ["rms", "gemma", "layer", "plain layer"]


@pytest.mark.parametrize("impl", FAST)
@given(
    kind=st.sampled_from(KINDS),
    num_rows=st.sampled_from([0, 1, 2, 3, 63, 64, 65, 130]),
    hidden_size=st.sampled_from([1, 2, 15, 16, 17, 64, 70]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    with_residual=st.booleans(),
    seed=st.integers(0, 99),
)
def test_gradients_equal_the_references(
    impl: str,
    kind: str,
    num_rows: int,
    hidden_size: int,
    dtype: torch.dtype,
    with_residual: bool,
    seed: int,
) -> None:
    given = inputs(num_rows, hidden_size, dtype, seed)
    actual = gradients(kind, impl, given, with_residual=with_residual)
    wide = [t.float() for t in given]
    expected = gradients(kind, "reference", wide, with_residual=with_residual)
    names = ("x", "weight", "bias or residual", "residual")
    terms = largest_terms(kind, wide, with_residual=with_residual)
    for name, a, e in zip(names, actual, expected, strict=False):
        assert a.dtype == dtype
        before = terms if a.shape == terms.shape and name != "weight" else 0.0
        assert_close(a + before, e + before, what=name, dtype=dtype, slack=3)


def largest_terms(kind: str, given: list[Tensor], *, with_residual: bool) -> Tensor:
    """What a row's gradient is the small difference of where the row is short."""
    x, weight, _, residual, dy, _ = given
    total = x + residual if with_residual else x
    centred = total - total.mean(-1, keepdim=True) if "layer" in kind else total
    rstd = torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
    return (dy * (weight.abs() + 1.0)).abs() * rstd


@settings(max_examples=10)
@given(
    kind=st.sampled_from(KINDS),
    num_rows=st.sampled_from([0, 1, 4]),
    hidden_size=st.sampled_from([17, 31, 33, 48, 70]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    with_residual=st.booleans(),
)
def test_rows_wider_than_a_tile_go_by_a_tile_at_a_time(
    kind: str, num_rows: int, hidden_size: int, dtype: torch.dtype, with_residual: bool
) -> None:
    given = inputs(num_rows, hidden_size, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _norm_triton, "MAX_TILE_BYTES", dict.fromkeys(_norm_triton.MAX_TILE_BYTES, 64)
        )
        patch.setattr(_norm_triton, "WIDE_TILE", 32)
        found = call(kind, *given[:3], impl="triton", residual=given[3])
        actual = gradients(kind, "triton", given, with_residual=with_residual)
        again = gradients(kind, "triton", given, with_residual=with_residual)
    wide = [t.float() for t in given]
    outputs = call(kind, *given[:3], impl="reference", residual=given[3])
    for a, e in zip(found, outputs, strict=True):
        assert_close(a, e, slack=2)
    expected = gradients(kind, "reference", wide, with_residual=with_residual)
    for a, b, e in zip(actual, again, expected, strict=True):
        assert torch.equal(a, b)
        assert_close(a, e, slack=3)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_rows_as_wide_as_they_come(kind: str, monkeypatch) -> None:
    monkeypatch.setattr(_norm_triton, "TILE_SUMS", 4096)  # fewer programs to interpret
    given = inputs(2, 33_000, torch.float32)
    for a, e in zip(
        call(kind, *given[:3], impl="triton", residual=given[3]),
        call(kind, *given[:3], impl="reference", residual=given[3]),
        strict=True,
    ):
        assert_close(a, e)
    actual = gradients(kind, "triton", given, with_residual=True)
    for a, e in zip(actual, gradients(kind, "reference", given, with_residual=True), strict=True):
        assert_close(a, e)


def test_rows_that_are_read_twice(monkeypatch) -> None:
    monkeypatch.setattr(_norm_triton, "TILE_SUMS", 4096)
    assert _norm_triton.norm_backward_tiles(8208, 2).reread
    assert not _norm_triton.is_wide(8208, 2, "rms backward")
    given = inputs(5, 8208, torch.float16)
    actual = gradients("rms", "triton", given, with_residual=True)
    torchs = eager_gradients("rms", given, with_residual=True)
    exact = eager_gradients("rms", [t.double() for t in given], with_residual=True)
    for a, t, e in zip(actual, torchs, exact, strict=True):
        assert_like_torch(a, t, e)


def test_the_width_of_a_row_decides_how_it_is_read() -> None:
    wide = _norm_triton.is_wide
    assert [wide(n, 2, "norm") for n in (32768, 32784, 8191, 8193)] == [False, True, False, True]
    assert [wide(n, 4, "norm") for n in (16384, 16400)] == [False, True]
    assert [wide(n, 2, "rms backward") for n in (16384, 16400)] == [False, True]
    assert [wide(n, 2, "layer backward") for n in (8192, 8208, 2047, 2049)] == [
        *(False, True),
        *(False, True),
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("with_residual", [False, True])
def test_triton_gradients_in_fp16_are_no_worse_than_torchs(kind: str, with_residual: bool) -> None:
    given = inputs(37, 300, torch.float16)
    wide = [t.double() for t in given]
    actual = gradients(kind, "triton", given, with_residual=with_residual)
    torchs = eager_gradients(kind, given, with_residual=with_residual)
    exact = eager_gradients(kind, wide, with_residual=with_residual)
    for a, t, e in zip(actual, torchs, exact, strict=True):
        assert_like_torch(a, t, e)


def eager_gradients(kind: str, given: list[Tensor], *, with_residual: bool):
    """The formulas in torch operations of the inputs' own dtype."""
    x, weight, bias, residual = (t.clone().requires_grad_() for t in given[:4])
    total = x + residual if with_residual else x
    centred = total - total.mean(-1, keepdim=True) if "layer" in kind else total
    eps = 1e-5 if "layer" in kind else 1e-6
    scaled = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    y = scaled * (weight + 1.0 if kind == "gemma" else weight)
    y = y + bias if kind == "layer" else y
    wanted = [x, weight, *([bias] if kind == "layer" else []), *([residual] * with_residual)]
    outputs = [y, total] if with_residual else [y]
    return torch.autograd.grad(outputs, wanted, given[4 : 4 + len(outputs)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_references_gradient_is_that_of_the_function(kind: str) -> None:
    """In float64, through the formulas the reference is made of."""
    given = [t.double().requires_grad_() for t in inputs(3, 5, torch.float64)[:4]]
    exact = eager_gradients(kind, inputs(3, 5, torch.float64), with_residual=True)
    actual = gradients(kind, "reference", inputs(3, 5, torch.float64), with_residual=True)
    for a, e in zip(actual, exact, strict=True):
        assert_close(a, e, dtype=torch.float32)

    def formula(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        total = x + residual
        centred = total - total.mean(-1, keepdim=True) if "layer" in kind else total
        y = centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5) * weight
        return y + bias

    assert torch.autograd.gradcheck(formula, given)


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_the_same_bits_every_run(impl: str, kind: str) -> None:
    given = inputs(150, 96, torch.float32)
    first = gradients(kind, impl, given, with_residual=True)
    for _ in range(2):
        again = gradients(kind, impl, given, with_residual=True)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_threads_do_not_change_a_bit(kind: str) -> None:
    given = inputs(700, 256, torch.bfloat16)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(gradients(kind, "native", given, with_residual=True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_an_unused_output_costs_no_gradient(impl: str, kind: str) -> None:
    x, weight, bias, residual, dy, dtotal = inputs(5, 12, torch.float32)
    for t in (x, weight, residual):
        t.requires_grad_()
    found = call(kind, x, weight, bias, residual=residual, impl=impl)
    of_sum = torch.autograd.grad(
        found.residual, (x, weight, residual), dtotal, retain_graph=True, allow_unused=True
    )
    assert torch.equal(of_sum[0], dtotal)
    assert of_sum[1] is None
    alone = torch.autograd.grad(found.output, (x, weight), dy)
    added = gradients(
        kind, impl, [x.detach(), weight.detach(), bias, residual.detach(), dy, 0 * dtotal],
        with_residual=True,
    )  # fmt: skip
    assert_close(alone[0], added[0])
    assert torch.equal(alone[1], added[1])


@pytest.mark.parametrize("impl", FAST)
def test_views_and_leading_dimensions_have_gradients(impl) -> None:
    fused = rows(0, 5, 4 * 16).requires_grad_()
    weight = rows(1, 16).requires_grad_()
    found = {}
    for how in ("reference", impl):
        heads = fused[:, 16:48].view(5, 2, 16)  # not contiguous
        y = rms_norm(heads, weight, impl=how)
        upstream = rows(2, 2, 5, 16).transpose(0, 1)  # not contiguous either
        found[how] = torch.autograd.grad(y, (fused, weight), upstream)
    for a, e in zip(found[impl], found["reference"], strict=True):
        assert_close(a, e)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_poison_beyond_the_rows_is_never_read(kind: str) -> None:
    """Rows that do not fill a tile, cut out of memory full of NaN."""
    given = inputs(3, 70, torch.float32)
    poisoned = []
    for t in given:
        buffer = torch.full((t.numel() + 4096,), torch.nan)
        buffer[: t.numel()] = t.flatten()
        poisoned.append(buffer[: t.numel()].view(t.shape))
    actual = gradients(kind, "triton", poisoned, with_residual=True)
    expected = gradients(kind, "triton", given, with_residual=True)
    assert all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))


@pytest.mark.parametrize("impl", FAST)
def test_the_operator_keeps_its_promises(impl: str) -> None:
    x, weight, bias, residual = (t.requires_grad_() for t in inputs(4, 24, torch.float32)[:4])
    operator = _norm.NORM.operator
    torch.library.opcheck(operator, (x, weight, None, None, 1e-6, 0.0, False, impl))
    torch.library.opcheck(operator, (x, weight, bias, residual, 1e-6, 0.0, True, impl))


def test_a_second_derivative_is_refused_not_wrong() -> None:
    x, weight = rows(0, 3, 8).requires_grad_(), rows(1, 8)
    y = rms_norm(x, weight, impl="native")
    (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_a_default_call_with_gradients_takes_a_fast_implementation(monkeypatch) -> None:
    taken: list[str] = []
    run: Callable[..., Any] = _norm.native_norm
    monkeypatch.setattr(_norm, "native_norm", lambda *a: taken.append("native") or run(*a))
    rms_norm(rows(0, 3, 8).requires_grad_(), rows(1, 8))
    assert taken == ["native"]


def test_torch_func_differentiates_to_any_order() -> None:
    """There the reference is taken: an operator with one hand-written gradient has no second."""
    x, weight = rows(0, 3, 8), rows(1, 8)

    def loss(x: Tensor) -> Tensor:
        return rms_norm(x, weight).square().sum()

    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(leaf), leaf)
    assert_close(torch.func.grad(loss)(x), expected)
    assert_close(torch.func.vmap(torch.func.grad(loss))(x), expected)
    assert torch.func.hessian(loss)(x[:1]).isfinite().all()
