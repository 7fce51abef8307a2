import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from blocks.ops import _matrix_tiles as tiling
from blocks.ops import _quant_launch, _quant_native, quant_linear, quantize_rows, quantize_weight
from blocks.ops.quant_linear import QUANT_LINEAR
from tests.numerics import assert_close
from tests.ops.test_quant import SCHEMES, quantized, schemes, sides

IMPLS = [None, "reference", "torch", "triton", "native"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EIGHT_BIT = [s for s in SCHEMES if s[0] == "fp8" or s[:2] in (("int8", None), ("int8", "tensor"))]


def problem(seed: int, num_rows: int, inputs: int, outputs: int, scheme: tuple, dtype):
    generator = torch.Generator().manual_seed(seed)
    x, bias = (torch.randn(s, generator=generator).to(dtype) for s in ((num_rows, inputs), outputs))
    return x, quantized(seed, outputs, inputs, scheme), bias


@given(
    num_rows=st.integers(0, 9),
    inputs=sides,
    outputs=sides,
    scheme=schemes,
    dtype=st.sampled_from(DTYPES),
    with_bias=st.booleans(),
    impl=st.sampled_from(IMPLS),
    seed=st.integers(0, 99),
)
def test_equals_dequantise_then_multiply(
    num_rows: int, inputs: int, outputs: int, scheme: tuple, dtype, with_bias: bool, impl, seed: int
) -> None:
    x, weight, bias = problem(seed, num_rows, inputs, outputs, scheme, dtype)
    expected = F.linear(x.double(), weight.dequantize().double())
    expected = expected + bias.double() if with_bias else expected
    y = quant_linear(x, weight, bias if with_bias else None, impl=impl)
    assert y.dtype == dtype
    assert_close(y, expected, slack=2)


@given(
    num_rows=st.integers(0, 9),
    inputs=sides,
    outputs=sides,
    scheme=st.sampled_from(EIGHT_BIT),
    dtype=st.sampled_from(DTYPES),
    with_bias=st.booleans(),
    impl=st.sampled_from(IMPLS),
    seed=st.integers(0, 99),
)
def test_with_rounded_input_equals_the_product_of_what_both_stand_for(
    num_rows: int, inputs: int, outputs: int, scheme: tuple, dtype, with_bias: bool, impl, seed: int
) -> None:
    x, weight, bias = problem(seed, num_rows, inputs, outputs, scheme, dtype)
    groups = None if weight.scales.shape[1] <= 1 else weight.group[1]
    format = "int8" if weight.format == "int8" else "fp8"
    rounded = quantize_rows(x, format=format, group_size=groups).dequantize()
    expected = F.linear(rounded.double(), weight.dequantize().double())
    expected = expected + bias.double() if with_bias else expected
    given_bias = bias if with_bias else None
    y = quant_linear(x, weight, given_bias, quantize_input=True, impl=impl)
    assert y.dtype == dtype
    assert_close(y, expected, slack=2)


def test_the_error_against_the_full_weight_is_what_few_bits_cost() -> None:
    """Relative RMS error of a product with random numbers: about 0.6 %, 2.5 % and 10 %."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(s, generator=generator) for s in ((64, 512), (256, 512)))
    exact = F.linear(x, weight)

    def error(format: str, **options) -> float:
        y = quant_linear(x, quantize_weight(weight, format=format), **options)  # pyright: ignore
        return ((y - exact).square().mean() / exact.square().mean()).sqrt().item()

    int8, fp8, int4 = error("int8"), error("fp8"), error("int4")
    assert 0.003 < int8 < 0.01 < fp8 < 0.04 < int4 < 0.12
    assert int8 < error("int8", quantize_input=True) < 0.015
    assert fp8 < error("fp8", quantize_input=True) < 0.05


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradients_reach_x_and_bias(scheme: tuple) -> None:
    x, weight, bias = problem(0, 5, 130, 70, scheme, torch.float32)
    x.requires_grad_()
    bias.requires_grad_()
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(5, 70, generator=generator)
    quant_linear(x, weight, bias).backward(dy)
    assert x.grad is not None
    assert bias.grad is not None
    assert_close(x.grad, dy.double() @ weight.dequantize().double(), slack=2)
    assert_close(bias.grad, dy.double().sum(0), slack=2)


def test_leading_dimensions_and_strides_are_kept() -> None:
    x, weight, bias = problem(0, 24, 130, 70, SCHEMES[0], torch.float32)
    expected = quant_linear(x, weight, bias)
    assert torch.equal(quant_linear(x.view(2, 3, 4, 130), weight, bias).view(24, 70), expected)
    assert torch.equal(quant_linear(x.t().contiguous().t(), weight, bias), expected)
    assert_close(quant_linear(x[0], weight, bias), expected[0])


def test_misuse_is_refused() -> None:
    bare = inspect.unwrap(quant_linear)
    x, weight, bias = problem(0, 3, 128, 70, ("int8", 64, True), torch.float32)
    with pytest.raises(ValueError, match="quantize_input: expected one scale a row"):
        bare(x, weight, quantize_input=True)
    int4 = quantized(0, 70, 128, ("int4", None, True))
    with pytest.raises(ValueError, match="quantize_input: expected False for int4"):
        bare(x, int4, quantize_input=True)
    int8 = quantized(0, 70, 128, ("int8", None, True))
    with pytest.raises(ValueError, match="quantize_input: expected x without requires_grad"):
        bare(x.clone().requires_grad_(), int8, quantize_input=True)
    with pytest.raises(ValueError, match=r"x shape: expected \[..., 128\], got \[3, 100\]"):
        bare(x[:, :100], weight)
    with pytest.raises(ValueError, match=r"bias shape: expected \[70\]"):
        bare(x, weight, bias[:3])
    with pytest.raises(TypeError, match=r"bias dtype: expected torch\.float32"):
        bare(x, weight, bias.half())
    with pytest.raises(TypeError, match="x dtype: expected a floating point dtype"):
        bare(x.int(), weight)
    with pytest.raises(ValueError, match="x shape: expected at least one dimension"):
        bare(torch.tensor(1.0), weight)
    with pytest.raises(ValueError, match="impl: expected one of"):
        bare(x, weight, impl="fast")


NATIVE = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_row_is_the_same_to_the_bit_in_any_batch(scheme: tuple, dtype) -> None:
    x, weight, bias = problem(3, 23, 300, 71, scheme, dtype)
    alone = torch.cat([quant_linear(row, weight, bias, impl="native") for row in x.split(1)])
    for num_rows in (1, 2, 3, 4, 5, 6, 7, 10, 11, 23):
        together = quant_linear(x[:num_rows], weight, bias, impl="native")
        assert torch.equal(together, alone[:num_rows]), num_rows
    assert torch.equal(quant_linear(x[5:9], weight, bias, impl="native"), alone[5:9])


@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("num_rows", [3, 20])
def test_the_number_of_threads_changes_nothing(dtype, num_rows: int) -> None:
    x, weight, bias = problem(3, num_rows, 512, 530, ("int4", None, False), dtype)
    threads = torch.get_num_threads()
    results = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(quant_linear(x, weight, bias, impl="native"))
    torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_many_rows_are_multiplied_a_tile_of_the_weight_at_a_time(scheme, dtype, monkeypatch):
    monkeypatch.setattr(_quant_native, "TILE_BYTES", 20_000)  # tiles of a few rows, the last short
    x, weight, bias = problem(1, 70, 200, 131, scheme, dtype)
    expected = F.linear(x.double(), weight.dequantize().double(), bias.double())
    assert_close(quant_linear(x, weight, bias, impl="native"), expected, slack=2)


def test_the_native_numbers_are_those_of_the_record() -> None:
    for scheme in SCHEMES:
        for columns in (1, 63, 64, 65, 200):
            weight = quantized(1, 37, columns, scheme)
            for dtype in NATIVE:
                plain = _quant_native.dequantize(weight, dtype, 5, 30)
                assert torch.equal(plain, weight.dequantize(dtype)[5:30]), (scheme, columns)


def test_neighbours_in_memory_are_neither_read_nor_written() -> None:
    for scheme in SCHEMES:
        x, weight, _ = problem(1, 3, 100, 9, scheme, torch.float32)
        padded = torch.full((5, 100), torch.nan)
        padded[1:4] = x
        y = quant_linear(padded[1:4], weight, impl="native")
        assert torch.equal(y, quant_linear(x, weight, impl="native"))


def test_not_a_number_reaches_only_its_own_row() -> None:
    for impl in ("native", "triton"):
        x, weight, _ = problem(1, 7, 100, 9, ("int4", None, True), torch.float32)
        clean = quant_linear(x, weight, impl=impl)
        x[2, 99] = torch.nan
        y = quant_linear(x, weight, impl=impl)
        assert y[2].isnan().all()
        others = [0, 1, 3, 4, 5, 6]
        assert torch.equal(y[others], clean[others])


@pytest.mark.parametrize("scheme", [("int4", None, True), ("int8", None, True)])
def test_splits_of_the_inputs_are_added_in_order(scheme: tuple, monkeypatch) -> None:
    x, weight, bias = problem(1, 3, 640, 20, scheme, torch.float32)
    expected = F.linear(x.double(), weight.dequantize().double(), bias.double())
    for processors in (1, 4, 64):  # one, several, as many shares as there are
        monkeypatch.setattr(_quant_launch, "num_processors", lambda _, n=processors: n)
        once = quant_linear(x, weight, bias, impl="triton")
        assert_close(once, expected, slack=2)
        assert torch.equal(quant_linear(x, weight, bias, impl="triton"), once)


@pytest.mark.parametrize("scheme", [("fp8", (128, 128), True), ("fp8", None, True)])
def test_fp8_is_multiplied_as_it_is_where_the_chip_knows_it(scheme: tuple, monkeypatch) -> None:
    x, weight, bias = problem(1, 17, 200, 140, scheme, torch.float32)
    decoded = quant_linear(x, weight, bias, quantize_input=True, impl="triton")
    monkeypatch.setattr(tiling, "chip", lambda device: "sm_90")
    direct = quant_linear(x, weight, bias, quantize_input=True, impl="triton")
    assert_close(direct, decoded)


def test_the_operator_is_registered_whole() -> None:
    for scheme in (("int8", None, True), ("int4", None, False)):
        x, weight, bias = problem(1, 3, 130, 20, scheme, torch.float32)
        parts = (weight.values, weight.scales, weight.zeros, *weight.shape, *weight.group)
        arguments = (x.requires_grad_(), *parts, bias.requires_grad_(), False, "torch")
        torch.library.opcheck(QUANT_LINEAR.operator, arguments)
