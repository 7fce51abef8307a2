import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.ops import grouped_linear
from blocks.ops.grouped_linear import GROUPED_LINEAR
from tests.numerics import assert_close

IMPLS = ["reference", "torch", "triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
group_lens = st.lists(st.sampled_from([0, 0, 1, 2, 7, 15, 16, 17, 33]), min_size=1, max_size=6)


def problem(seed: int, lens: list[int], inputs: int, outputs: int, dtype, *, outside: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(lens) + outside, inputs, generator=generator).to(dtype)
    weight = torch.randn(len(lens), outputs, inputs, generator=generator).to(dtype)
    offsets = torch.tensor([0, *lens]).cumsum(0).to(torch.int32)
    return x, weight, offsets


def expected(x: torch.Tensor, weight: torch.Tensor, lens: list[int]) -> torch.Tensor:
    parts = [
        part.double() @ matrix.double().t()
        for part, matrix in zip(x[: sum(lens)].split(lens), weight, strict=True)
    ]
    zeros = torch.zeros(len(x) - sum(lens), weight.shape[1], dtype=torch.float64)
    return torch.cat((*parts, zeros))


@given(
    lens=group_lens,
    inputs=st.sampled_from([1, 3, 16, 40, 65]),
    outputs=st.sampled_from([1, 2, 16, 33, 70]),
    outside=st.sampled_from([0, 0, 1, 20]),
    dtype=st.sampled_from(DTYPES),
    impl=st.sampled_from(IMPLS),
    seed=st.integers(0, 99),
)
def test_every_group_has_its_own_matrix(
    lens: list[int], inputs: int, outputs: int, outside: int, dtype, impl, seed: int
) -> None:
    x, weight, offsets = problem(seed, lens, inputs, outputs, dtype, outside=outside)
    wanted = expected(x, weight, lens)
    x[sum(lens) :] = torch.nan  # rows of no group are not read
    y = grouped_linear(x, weight, offsets, impl=impl)
    assert y.dtype == dtype
    assert_close(y, wanted, slack=2)


@pytest.mark.parametrize("impl", IMPLS)
def test_matrices_of_empty_groups_are_not_read(impl) -> None:
    x, weight, offsets = problem(0, [5, 0, 20, 0], 24, 12, torch.float32)
    clean = grouped_linear(x, weight, offsets, impl=impl)
    weight[1], weight[3] = torch.nan, torch.nan
    assert torch.equal(grouped_linear(x, weight, offsets, impl=impl), clean)


@pytest.mark.parametrize("impl", IMPLS)
def test_the_same_bits_every_run_and_any_stride(impl) -> None:
    x, weight, offsets = problem(0, [5, 3, 20, 0], 24, 12, torch.float32)
    once = grouped_linear(x, weight, offsets, impl=impl)
    assert torch.equal(grouped_linear(x, weight, offsets, impl=impl), once)
    turned = weight.transpose(1, 2).contiguous().transpose(1, 2)
    assert_close(grouped_linear(x, turned, offsets, impl=impl), once)
    assert_close(grouped_linear(x.t().contiguous().t(), weight, offsets, impl=impl), once)


@pytest.mark.parametrize("impl", ["reference", "torch"])
@pytest.mark.parametrize("lens", [[3, 0, 2], [0, 0], [4]])
def test_gradients_in_double_precision(impl, lens: list[int]) -> None:
    x, weight, offsets = problem(0, lens, 4, 3, torch.float64, outside=1)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, w, offsets, impl=impl), inputs)


@pytest.mark.parametrize("lens", [[20, 0, 3, 17], [0, 0], [33]])
def test_gradients_of_the_kernels_equal_those_of_the_reference(lens: list[int]) -> None:
    x, weight, offsets = problem(0, lens, 24, 35, torch.float32, outside=2)
    dy = torch.randn(len(x), 35, generator=torch.Generator().manual_seed(1))
    inputs = (x.requires_grad_(), weight.requires_grad_())
    found = [
        torch.autograd.grad(grouped_linear(*inputs, offsets, impl=impl), inputs, dy)
        for impl in ("triton", "reference")
    ]
    for actual, wanted in zip(*found, strict=True):
        assert_close(actual, wanted, slack=2)
    assert not found[0][0][sum(lens) :].any()


def test_double_precision_has_no_kernel() -> None:
    x, weight, offsets = problem(0, [3], 4, 3, torch.float64)
    with pytest.raises(ValueError, match="impl: expected one of"):
        inspect.unwrap(grouped_linear)(x, weight, offsets, impl="triton")


def test_the_operator_is_registered_whole() -> None:
    x, weight, offsets = problem(0, [3, 0, 2], 4, 3, torch.float32)
    arguments = (x.requires_grad_(), weight.requires_grad_(), offsets, "torch")
    torch.library.opcheck(GROUPED_LINEAR.operator, arguments)


def test_misuse_is_refused() -> None:
    bare = inspect.unwrap(grouped_linear)
    x, weight, offsets = problem(0, [3, 0, 2], 4, 3, torch.float32)
    with pytest.raises(ValueError, match=r"weight shape: expected \[num_groups, .*, 4\]"):
        bare(x, weight[:, :, :3], offsets)
    with pytest.raises(ValueError, match=r"offsets shape: expected \[4\], got \[3\]"):
        bare(x, weight, offsets[:-1])
    with pytest.raises(TypeError, match=r"offsets dtype: expected torch\.int32"):
        bare(x, weight, offsets.long())
    with pytest.raises(TypeError, match=r"weight dtype: expected torch\.float32"):
        bare(x, weight.half(), offsets)
    with pytest.raises(TypeError, match="x dtype: expected a floating point"):
        bare(x.int(), weight, offsets)
    with pytest.raises(ValueError, match="x shape"):
        bare(x[0], weight, offsets)
