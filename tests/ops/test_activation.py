import inspect

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from blocks.ops import gelu, gelu_and_mul, relu, silu_and_mul
from tests.numerics import assert_close

FAST = ["native", "triton"]
DTYPES = [torch.float32, torch.bfloat16]


def rows(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (4 * torch.randn(shape, generator=generator)).to(dtype)


@pytest.mark.parametrize("impl", FAST)
@given(
    num_rows=st.integers(0, 4),
    hidden=st.integers(0, 70),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 99),
)
def test_gated_activations_equal_torch(
    impl, num_rows: int, hidden: int, dtype: torch.dtype, seed: int
) -> None:
    gate_up = rows(seed, num_rows, 2 * hidden, dtype=dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert_close(silu_and_mul(gate_up, impl=impl), F.silu(gate) * up)
    expected = F.gelu(gate, approximate="tanh") * up
    assert_close(gelu_and_mul(gate_up, approximate="tanh", impl=impl), expected)


@pytest.mark.parametrize("impl", ["reference", "triton"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_plain_activations_equal_torch(impl, approximate, dtype: torch.dtype) -> None:
    x = rows(1, 3, 50, dtype=dtype)
    wide = x.double()
    assert_close(gelu(x, approximate=approximate, impl=impl), F.gelu(wide, approximate=approximate))
    expected = F.gelu(wide[:, :25], approximate=approximate) * wide[:, 25:]
    assert_close(gelu_and_mul(x, approximate=approximate, impl=impl), expected)
    assert torch.equal(relu(x, impl=impl), F.relu(x))


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_far_inputs_stay_finite(impl) -> None:
    gate = torch.tensor([-1e30, -200.0, -90.0, -0.0, 90.0, 200.0, 1e30])
    y = silu_and_mul(torch.cat((gate, torch.ones(7))), impl=impl)
    assert_close(y[3:], gate[3:])
    assert (y[:3].abs() < 1e-30).all()
    tanh = gelu_and_mul(torch.cat((gate[1:6], torch.ones(5))), approximate="tanh", impl=impl)
    assert_close(tanh, torch.tensor([0.0, 0.0, 0.0, 90.0, 200.0]))


@pytest.mark.parametrize("impl", ["reference", *FAST])
def test_not_a_number_stays_where_it_is(impl) -> None:
    gate_up = rows(2, 4, 40)
    gate_up[1, 3] = gate_up[2, 39] = torch.nan
    y = silu_and_mul(gate_up, impl=impl)
    assert sorted(map(tuple, y.isnan().nonzero().tolist())) == [(1, 3), (2, 19)]


@pytest.mark.parametrize("impl", FAST)
def test_strided_rows_are_read_as_they_lie(impl) -> None:
    wide = rows(3, 5, 64)
    y = silu_and_mul(wide[:, 8:40], impl=impl)
    assert torch.equal(y, silu_and_mul(wide[:, 8:40].clone(), impl=impl))


def test_gradients_flow() -> None:
    x = rows(4, 3, 8).requires_grad_()
    total = sum(f(x).square().sum() for f in (silu_and_mul, gelu_and_mul, gelu, relu))
    assert isinstance(total, torch.Tensor)
    total.backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(torch.ones(2, 5)), r"gate_up shape: expected rows of even length"),
        (lambda f: f(torch.ones(2, 4, dtype=torch.int64)), "dtype: expected a floating point"),
        (lambda f: f(torch.ones(2, 4), impl="torch"), "impl: expected one of"),
    ],
)
def test_misuse_is_refused(call, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call(inspect.unwrap(silu_and_mul))
    with pytest.raises(ValueError, match="approximate: expected 'none' or 'tanh'"):
        inspect.unwrap(gelu)(torch.ones(2), approximate="erf")
