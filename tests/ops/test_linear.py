import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.ops import linear
from tests.numerics import assert_close

DTYPES = [torch.float32, torch.bfloat16]


def matrices(seed: int, num_rows: int, inputs: int, outputs: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((num_rows, inputs), (outputs, inputs), (outputs,))
    )
    return x, weight, bias


@given(
    num_rows=st.integers(0, 20),
    inputs=st.integers(0, 100),
    outputs=st.integers(0, 23),
    dtype=st.sampled_from(DTYPES),
    with_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_native_equals_reference(
    num_rows: int, inputs: int, outputs: int, dtype: torch.dtype, with_bias: bool, seed: int
) -> None:
    x, weight, bias = matrices(seed, num_rows, inputs, outputs, dtype)
    given_bias = bias if with_bias else None
    expected = linear(x.double(), weight.double(), bias.double() if with_bias else None)
    assert_close(linear(x, weight, given_bias, impl="native"), expected, slack=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 16), (1024, 37), (77, 130)])
def test_a_row_is_the_same_to_the_bit_in_any_batch(
    dtype: torch.dtype, inputs: int, outputs: int
) -> None:
    x, weight, bias = matrices(3, 64, inputs, outputs, dtype)
    alone = torch.cat([linear(row, weight, bias, impl="native") for row in x.split(1)])
    for num_rows in (1, 2, 3, 4, 5, 6, 7, 8, 11, 12, 13, 31, 32, 63, 64):
        together = linear(x[:num_rows], weight, bias, impl="native")
        assert torch.equal(together, alone[:num_rows]), num_rows
    assert torch.equal(linear(x[5:9], weight, bias, impl="native"), alone[5:9])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_changes_nothing(dtype: torch.dtype) -> None:
    x, weight, bias = matrices(3, 5, 512, 1030, dtype)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(linear(x, weight, bias, impl="native"))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_neighbours_of_the_matrices_are_neither_read_nor_written() -> None:
    for dtype in DTYPES:
        x, weight, _ = matrices(1, 3, 45, 7, dtype)
        padded_x = torch.full((5, 45), torch.nan, dtype=dtype)
        padded_w = torch.full((9, 45), torch.nan, dtype=dtype)
        padded_x[1:4], padded_w[1:8] = x, weight
        y = linear(padded_x[1:4], padded_w[1:8], impl="native")
        assert torch.equal(y, linear(x, weight, impl="native"))


def test_leading_dimensions_and_strides_are_kept() -> None:
    x, weight, bias = matrices(1, 24, 20, 6, torch.float32)
    expected = linear(x, weight, bias, impl="native")
    assert torch.equal(
        linear(x.view(2, 3, 4, 20), weight, bias, impl="native").view(24, 6), expected
    )
    assert torch.equal(linear(x.t().contiguous().t(), weight, bias, impl="native"), expected)
    assert torch.equal(linear(x[0], weight, bias, impl="native"), expected[0])


def test_not_a_number_reaches_only_its_own_row() -> None:
    x, weight, _ = matrices(1, 4, 64, 8, torch.bfloat16)
    clean = linear(x, weight, impl="native")
    x[2, 63] = torch.nan
    y = linear(x, weight, impl="native")
    assert y[2].isnan().all()
    assert torch.equal(y[[0, 1, 3]], clean[[0, 1, 3]])


def test_gradients_flow_and_a_native_wish_is_refused() -> None:
    x, weight, bias = (t.requires_grad_() for t in matrices(1, 3, 8, 5, torch.float32))
    linear(x, weight, bias).square().sum().backward()
    assert all(t.grad is not None for t in (x, weight, bias))
    with pytest.raises(ValueError, match="differentiable"):
        linear(x, weight, impl="native")
    with torch.no_grad():
        linear(x, weight, impl="native")


def test_other_dtypes_have_no_native_path() -> None:
    x, weight, _ = matrices(1, 3, 8, 5, torch.float16)
    assert_close(linear(x, weight), linear(x.double(), weight.double()))
    with pytest.raises(ValueError, match="impl: expected one of \\['reference', 'torch'\\]"):
        linear(x, weight, impl="native")


@pytest.mark.parametrize(
    ("weight", "bias", "message"),
    [
        (torch.ones(5, 9), None, r"weight shape: expected \[out_features, 8\], got \[5, 9\]"),
        (torch.ones(8), None, r"weight shape: expected \[out_features, 8\], got \[8\]"),
        (torch.ones(5, 8), torch.ones(4), r"bias shape: expected \[5\], got \[4\]"),
    ],
)
def test_misuse_is_refused(weight: torch.Tensor, bias: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(linear)(torch.ones(2, 8), weight, bias)


def test_a_single_number_is_no_row() -> None:
    with pytest.raises(ValueError, match="x shape: expected at least one dimension"):
        inspect.unwrap(linear)(torch.tensor(1.0), torch.ones(1, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_bias_may_have_any_stride(dtype: torch.dtype) -> None:
    x, weight, _ = matrices(0, 2, 40, 9, dtype)
    column = torch.arange(27.0).to(dtype).view(9, 3)[:, 1]
    for bias in (column, column[:1].expand(9)):
        expected = linear(x.double(), weight.double(), bias.double())
        assert_close(linear(x, weight, bias, impl="native"), expected, slack=2)
