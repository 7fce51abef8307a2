"""The makers and comparisons of the accelerator's tests, run small in the interpreter."""

import pytest
import torch

from benches.matrix.row import Setting
from tests.contract_table import TABLE
from tests.gpu.real_sizes import REAL, SLACK
from tests.gpu.running import assert_same, moved, run
from tests.test_kernels_contract import FAST, implementations

CPU = torch.device("cpu")
TINY = Setting(CPU, tiny=True)


def test_every_kernel_has_real_sizes_or_small_ones():
    assert set(REAL) <= set(FAST)


@pytest.mark.parametrize("name", REAL)
def test_the_kernel_matches_the_reference_on_these_inputs(name):
    given = REAL[name](TINY)
    impl = "triton" if "triton" in implementations(name) else None
    found, expected = (run(name, given, CPU, impl=how) for how in (impl, "reference"))
    assert_same(found, expected, name, SLACK.get(name))


@pytest.mark.parametrize("name", FAST)
def test_inputs_are_copied_whole(name):
    """Wrapped tensors too: a call on copies leaves the originals alone."""
    given = TABLE[name].make()
    before, after = run(name, given, CPU), run(name, given, CPU)
    assert_same(before, after, name)


def test_a_wrong_result_is_noticed():
    x = torch.randn(10, 10)
    with pytest.raises(AssertionError):
        assert_same([x], [x + 0.1], "ops.relu")
    with pytest.raises(AssertionError, match="of the elements are equal"):
        assert_same([torch.ones(9).long()], [torch.zeros(9).long()], "ops.relu")
    copy = moved({"a": [x], "b": (x, 3)}, CPU)
    assert copy["a"][0] is not x
    assert torch.equal(copy["b"][0], x)
