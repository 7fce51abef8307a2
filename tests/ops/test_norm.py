import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from blocks.ops import layer_norm, rms_norm
from tests.numerics import assert_close

FAST = ["native", "triton"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(shape, generator=generator)).to(dtype)


def hf_norm(module: type, weight: torch.Tensor) -> torch.nn.Module:
    norm = module(weight.shape[0], eps=1e-5)
    norm.weight.data = weight
    return norm


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("module", [LlamaRMSNorm, Qwen3RMSNorm, Gemma2RMSNorm])
def test_reference_equals_transformers_to_the_bit(module: type, dtype: torch.dtype) -> None:
    x, weight = rows(0, 7, 96, dtype=dtype), rows(1, 96, dtype=dtype)
    offset = 1.0 if module is Gemma2RMSNorm else 0.0
    with torch.no_grad():
        expected = hf_norm(module, weight)(x)
    actual = rms_norm(x, weight, eps=1e-5, weight_offset=offset, impl="reference")
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_two_rounding_orders_differ_only_below_fp32(dtype: torch.dtype) -> None:
    """Why weight_offset decides the order: in bf16 the two models' answers are not the same."""
    x, weight = rows(0, 64, 96, dtype=dtype), rows(1, 96, dtype=dtype)
    llama = rms_norm(x, weight, impl="reference")
    gemma_order = rms_norm(x, weight.double().sub(1).float(), weight_offset=1.0, impl="reference")
    assert torch.equal(llama, gemma_order) == (dtype == torch.float32) or dtype == torch.float32
    assert_close(llama, gemma_order, dtype=dtype)
    if dtype != torch.float32:
        assert not torch.equal(llama, gemma_order)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_equals_torch(dtype: torch.dtype) -> None:
    x, weight, bias = (rows(i, *s, dtype=dtype) for i, s in enumerate([(7, 96), (96,), (96,)]))
    expected = torch.nn.functional.layer_norm(
        x.double(), (96,), weight.double(), bias.double(), 1e-5
    )
    assert_close(layer_norm(x, weight, bias, eps=1e-5), expected)


@pytest.mark.parametrize("impl", FAST)
@given(
    num_rows=st.integers(0, 5),
    hidden_size=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES[:2]),
    weight_offset=st.sampled_from([0.0, 1.0]),
    with_residual=st.booleans(),
    seed=st.integers(0, 99),
)
def test_fast_norms_equal_reference(
    impl,
    num_rows: int,
    hidden_size: int,
    dtype: torch.dtype,
    weight_offset: float,
    with_residual: bool,
    seed: int,
) -> None:
    x, residual = (rows(seed + i, num_rows, hidden_size, dtype=dtype) for i in (0, 1))
    weight, bias = (rows(seed + i, hidden_size, dtype=dtype) for i in (2, 3))
    extra = {"residual": residual} if with_residual else {}
    calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (rms_norm, {"weight_offset": weight_offset, **extra}),
        (layer_norm, {"bias": bias, **extra}),
        (layer_norm, extra),
    ]
    for norm, options in calls:
        expected = norm(x, weight, **options, impl="reference")
        actual = norm(x, weight, **options, impl=impl)
        if with_residual:
            assert torch.equal(actual.residual, expected.residual) or impl == "triton"
            assert_close(actual.residual, expected.residual)
            actual, expected = actual.output, expected.output
        assert_close(actual, expected, slack=2)  # one rounding may fall the other way


@pytest.mark.parametrize("impl", FAST)
@pytest.mark.parametrize("hidden_size", [96, 1000])
def test_a_row_does_not_depend_on_its_batch(impl, hidden_size: int) -> None:
    x, weight = rows(0, 9, hidden_size), rows(1, hidden_size)
    for norm in (rms_norm, layer_norm):
        together = norm(x, weight, impl=impl)
        alone = torch.cat([norm(row, weight, impl=impl) for row in x.split(1)])
        assert torch.equal(together, alone)


@pytest.mark.parametrize("impl", FAST)
def test_heads_of_a_fused_projection_can_be_normed(impl) -> None:
    fused = rows(0, 5, 4 * 16)
    heads = fused[:, 16:48].view(5, 2, 16)  # not contiguous
    weight = rows(1, 16)
    assert_close(rms_norm(heads, weight, impl=impl), rms_norm(heads, weight, impl="reference"))


@pytest.mark.parametrize("impl", FAST)
def test_large_rows_keep_their_precision(impl) -> None:
    x = rows(0, 2, 5000) + 1000.0  # a mean far from zero: one-pass variance would cancel
    weight = torch.ones(5000)
    exact = (x.double() - x.double().mean(-1, keepdim=True)) / x.double().std(
        -1, correction=0, keepdim=True
    )
    assert_close(layer_norm(x, weight, impl=impl), exact, slack=100)  # fp32 mean of 1000s


@given(num_rows=st.integers(0, 5), hidden_size=st.integers(1, 70), seed=st.integers(0, 99))
def test_fused_residual_equals_adding_first(num_rows: int, hidden_size: int, seed: int) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, residual = (rows(seed + i, num_rows, hidden_size, dtype=dtype) for i in (0, 1))
        weight = rows(seed + 2, hidden_size, dtype=dtype)
        for norm in (rms_norm, layer_norm):
            fused = norm(x, weight, residual=residual)
            assert torch.equal(fused.residual, x + residual)
            assert torch.equal(fused.output, norm(x + residual, weight))


@pytest.mark.parametrize("norm", [rms_norm, layer_norm])
def test_gradients_flow_to_every_input(norm) -> None:
    x, weight, residual = (rows(i, *s).double() for i, s in enumerate([(3, 5), (5,), (3, 5)]))
    leaves = [t.float().requires_grad_() for t in (x, weight, residual)]
    output = norm(leaves[0], leaves[1], residual=leaves[2])
    (output.output.square().sum() + output.residual.sum()).backward()
    assert all(leaf.grad is not None and leaf.grad.abs().sum() > 0 for leaf in leaves)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.ones(4)}, "weight shape: expected \\[5\\], got \\[4\\]"),
        ({"eps": -1.0}, "eps: expected a number of at least 0"),
        ({"eps": float("nan")}, "eps: expected a number of at least 0"),
        ({"impl": "fast"}, "impl: expected one of"),
    ],
)
def test_misuse_is_refused(change: dict, message: str) -> None:
    arguments = {"x": torch.ones(2, 5), "weight": torch.ones(5), **change}
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(rms_norm)(**arguments)  # past the annotations that tests execute
