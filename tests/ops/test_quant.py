import dataclasses
import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.ops import QuantizedWeight, quantize_rows, quantize_weight
from blocks.ops.quant import pack_int4, spread_groups, unpack_int4

SCHEMES = [
    ("int8", None, True),
    ("int8", "tensor", True),
    ("int8", 128, True),
    ("int8", (16, 64), True),
    ("fp8", None, True),
    ("fp8", "tensor", True),
    ("fp8", (128, 128), True),
    ("int4", None, True),
    ("int4", 64, True),
    ("int4", "channel", True),
    ("int4", None, False),
    ("int4", 64, False),
]
schemes = st.sampled_from(SCHEMES)
sides = st.sampled_from([0, 1, 2, 63, 64, 65, 127, 128, 129, 200])


def matrix(seed: int, rows: int, columns: int, spread: float = 2.0) -> torch.Tensor:
    """Elements whose rows differ in size by orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(spread * torch.randn(rows, 1, generator=generator))
    return torch.randn(rows, columns, generator=generator) * sizes


def quantized(seed: int, rows: int, columns: int, scheme: tuple) -> QuantizedWeight:
    format, group_size, symmetric = scheme
    weight = matrix(seed, rows, columns)
    return quantize_weight(weight, format=format, group_size=group_size, symmetric=symmetric)


@given(rows=sides, columns=sides, scheme=schemes, seed=st.integers(0, 99))
def test_rounding_is_off_by_at_most_half_a_step(
    rows: int, columns: int, scheme: tuple, seed: int
) -> None:
    weight, made = matrix(seed, rows, columns), quantized(seed, rows, columns, scheme)
    error = (made.dequantize().double() - weight.double()).abs()
    step = spread_groups(made.scales, made.group, made.shape).double()
    if made.format == "fp8":
        limit = torch.maximum(weight.double().abs() / 16, step / 1024)
    else:
        limit = step / 2
    assert (error <= limit * (1 + 1e-5)).all()
    assert made.dequantize().shape == weight.shape


@given(rows=sides, columns=sides, scheme=schemes, seed=st.integers(0, 9))
def test_what_is_representable_comes_back(
    rows: int, columns: int, scheme: tuple, seed: int
) -> None:
    made = quantized(seed, rows, columns, scheme)
    format, group_size, symmetric = scheme
    values = made.dequantize()
    again = quantize_weight(values, format=format, group_size=group_size, symmetric=symmetric)
    torch.testing.assert_close(again.dequantize(), values, rtol=1e-5, atol=0)


@given(rows=st.integers(0, 5), columns=st.integers(0, 200), seed=st.integers(0, 99))
def test_packing_is_undone_by_unpacking(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(0, 16, (rows, columns), generator=generator, dtype=torch.uint8)
    packed = pack_int4(numbers)
    assert packed.shape == (rows, 32 * -(-columns // 64))
    assert torch.equal(unpack_int4(packed, columns), numbers)


def test_the_packing_is_the_one_that_is_written_down() -> None:
    numbers = (torch.arange(128) % 16).to(torch.uint8).view(1, 128)
    numbers[0, 32 + 5] = 3
    packed = pack_int4(numbers)
    assert packed[0, 5].item() == 5 | 3 << 4
    assert packed[0, 32 + 7].item() == (64 + 7) % 16 | ((64 + 32 + 7) % 16) << 4


@given(
    num_rows=st.integers(0, 5),
    columns=st.integers(0, 300),
    format=st.sampled_from(["int8", "fp8"]),
    group_size=st.sampled_from([None, 37, 100, 128]),
    impl=st.sampled_from(["reference", "triton"]),
    seed=st.integers(0, 99),
)
def test_rows_are_off_by_at_most_half_a_step(
    num_rows: int, columns: int, format, group_size: int | None, impl, seed: int
) -> None:
    x = matrix(seed, num_rows, columns)
    made = quantize_rows(x, format=format, group_size=group_size, impl=impl)
    width = group_size or max(columns, 1)
    step = made.scales.repeat_interleave(width, 1)[:, :columns]
    limit = step / 2 if format == "int8" else torch.maximum(x.abs() / 16, step / 1024)
    assert ((made.dequantize() - x).abs() <= limit * (1 + 1e-5)).all()


@given(
    num_rows=st.integers(0, 5),
    columns=st.integers(0, 300),
    format=st.sampled_from(["int8", "fp8"]),
    group_size=st.sampled_from([None, 100, 128]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_the_kernel_rounds_rows_to_the_same_bits(
    num_rows: int, columns: int, format, group_size: int | None, dtype, seed: int
) -> None:
    x = matrix(seed, num_rows, columns, spread=0.5).to(dtype)
    kernel, reference = (
        quantize_rows(x, format=format, group_size=group_size, impl=impl)
        for impl in ("triton", "reference")
    )
    assert torch.equal(kernel.scales, reference.scales)
    assert torch.equal(kernel.values.view(torch.uint8), reference.values.view(torch.uint8))


def test_every_e4m3_byte_is_written_and_read_by_the_kernels() -> None:
    """Rows of representable numbers, the largest among them, come back as they are."""
    bits = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    numbers = bits.float()[bits.float().isfinite()]
    made = quantize_rows(numbers[None], format="fp8", impl="triton")
    assert made.scales.item() == 1.0
    assert torch.equal(made.values.float(), numbers[None])
    halfway = (numbers[:-1] + numbers[1:]).div(2).clamp(-448, 448)
    row = torch.cat((halfway, torch.tensor([448.0])))[None]
    made = quantize_rows(row, format="fp8", impl="triton")
    assert torch.equal(made.values.float(), row.to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zero_groups_and_tiny_numbers_stay_finite(scheme: tuple) -> None:
    format, group_size, symmetric = scheme
    weight = torch.zeros(130, 130)
    weight[3] = 1e-44
    made = quantize_weight(weight, format=format, group_size=group_size, symmetric=symmetric)
    assert (made.dequantize() - weight).abs().max() <= 1e-37


def test_a_block_outlier_costs_only_its_own_group() -> None:
    weight = matrix(0, 4, 256, spread=0)
    loud = weight.clone()
    loud[1, 200] = 1e4
    for format in ("int8", "int4"):
        quiet = quantize_weight(weight, format=format, group_size=128).dequantize()
        disturbed = quantize_weight(loud, format=format, group_size=128).dequantize()
        same = torch.ones_like(weight, dtype=torch.bool)
        same[1, 128:] = False
        assert torch.equal(quiet[same], disturbed[same])
        assert not torch.equal(quiet[1, 128:], disturbed[1, 128:])


def test_zero_points_halve_the_step_of_a_group_on_one_side() -> None:
    weight = matrix(0, 8, 128, spread=0).abs()
    signed = quantize_weight(weight, format="int4")
    shifted = quantize_weight(weight, format="int4", symmetric=False)
    assert (shifted.scales < 0.5 * signed.scales).all()


def test_a_checkpoint_keeps_the_tensors_and_their_sizes() -> None:
    for scheme in SCHEMES:
        made = quantized(1, 130, 200, scheme)
        copied = QuantizedWeight(made.values, made.scales, made.zeros, made.shape, made.group)
        assert torch.equal(copied.dequantize(), made.dequantize())
        assert torch.equal(made.to("cpu").dequantize(), made.dequantize())
        assert made.format == scheme[0]
    assert quantized(1, 256, 256, ("int8", None, True)).num_bytes == 256 * 256 + 4 * 256
    assert quantized(1, 256, 256, ("int4", None, False)).num_bytes == 256 * (128 + 2 * 4 + 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "int2"}, "format: expected one of .* got 'int2'"),
        ({"group_size": "row"}, "group_size: expected 'tensor', 'channel'"),
        ({"group_size": 100}, r"group_size: expected .* multiples of 64, got \(1, 100\)"),
        ({"group_size": (0, 64)}, r"group_size: expected .* got \(0, 64\)"),
        ({"symmetric": False}, "symmetric: expected True for int8"),
    ],
)
def test_schemes_that_do_not_exist_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(quantize_weight)(torch.ones(2, 64), **arguments)


def test_weights_that_cannot_be_rounded_are_refused() -> None:
    bare = inspect.unwrap(quantize_weight)
    with pytest.raises(ValueError, match="weight: expected finite numbers"):
        bare(torch.tensor([[1.0, torch.inf]]))
    with pytest.raises(ValueError, match="weight shape: expected"):
        bare(torch.ones(3))
    with pytest.raises(TypeError, match="weight dtype: expected a floating point"):
        bare(torch.ones(3, 3, dtype=torch.int8))
    with pytest.raises(ValueError, match="format: expected 'int8' or 'fp8'"):
        inspect.unwrap(quantize_rows)(torch.ones(2, 2), format="int4")
    with pytest.raises(ValueError, match="group_size: expected a positive number"):
        quantize_rows(torch.ones(2, 2), group_size=0)
    with pytest.raises(ValueError, match="x shape: expected"):
        inspect.unwrap(quantize_rows)(torch.ones(2))


def test_records_that_contradict_themselves_are_refused() -> None:
    made = quantized(0, 130, 200, ("int8", 64, True))
    with pytest.raises(ValueError, match="scales shape: expected"):
        dataclasses.replace(made, scales=made.scales[:, :1])
    with pytest.raises(ValueError, match="values shape: expected"):
        dataclasses.replace(made, shape=(130, 201))
    with pytest.raises(ValueError, match="zeros: expected None for int8"):
        dataclasses.replace(made, zeros=made.scales.to(torch.uint8))
    with pytest.raises(TypeError, match="scales dtype"):
        dataclasses.replace(made, scales=made.scales.double())
    with pytest.raises(TypeError, match="values dtype"):
        dataclasses.replace(made, values=made.values.float())
