"""The comparison that judges every kernel can say no."""

import pytest
import torch

from tests.numerics import assert_close, assert_like_torch

EXPECTED = torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])


def test_equal_is_close() -> None:
    assert_close(EXPECTED.clone(), EXPECTED)


@pytest.mark.parametrize(
    ("index", "number", "says"),
    [
        (0, 1.001, "relative RMS error"),
        (0, torch.nan, "infinities or NaNs differ"),
        (0, torch.inf, "not finite where the reference is"),
        (1, 0.5, "infinities or NaNs differ"),
        (2, 3e38, "infinities or NaNs differ"),
        (3, torch.inf, "infinities or NaNs differ"),
    ],
)
def test_a_wrong_number_is_told(index: int, number: float, says: str) -> None:
    actual = EXPECTED.clone()
    actual[index] = number
    with pytest.raises(AssertionError, match=says):
        assert_close(actual, EXPECTED)


def test_a_wrong_shape_is_told() -> None:
    with pytest.raises(AssertionError, match="shape"):
        assert_close(torch.ones(2, 1), torch.ones(2))


def test_the_rule_of_torchs_own_error_can_say_no() -> None:
    exact = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    rounded = exact.half()
    assert_like_torch(rounded, rounded, exact)
    with pytest.raises(AssertionError, match="torch's own"):
        assert_like_torch(rounded + 0.01, rounded, exact)
    with pytest.raises(AssertionError, match="nan"):
        assert_like_torch(rounded * torch.nan, rounded, exact)
