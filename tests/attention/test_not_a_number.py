"""A NaN that a query sees reaches its output and LSE, and nobody else's: it is never lost."""

import pytest
import torch

from blocks.attention import merge_states, paged_decode, paged_extend, prefill
from tests.attention.paged_case import paged_case

IMPLS = ["reference", "native", "triton"]
DTYPES = [torch.float32, torch.bfloat16]
NAN = float("nan")

pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")


def spoilt(what: str, dtype: torch.dtype):
    """Two decodes over contexts of several splits; the first has a NaN."""
    case = paged_case([1, 1], [1200, 1100], dtype=dtype)
    if what == "query":
        case.query[0] = NAN
    elif what == "one key":  # the tile before it and those after it are fine
        case.key_cache[int(case.block_table[0, 40]), 3] = NAN
    else:
        case.key_cache[case.block_table[0, :75].long()] = NAN
    return case


def assert_only_the_first_is_lost(result):
    assert result.output[0].isnan().all()
    assert result.lse[0].isnan().all()
    assert result.output[1].isfinite().all()
    assert result.lse[1].isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("what", ["query", "one key", "every key"])
@pytest.mark.parametrize("impl", IMPLS)
def test_decode_and_extend_and_prefill(impl, what, dtype):
    case = spoilt(what, dtype)
    options = {"return_lse": True, "impl": impl}
    splits = {"num_splits": 3} if impl == "triton" else {}
    assert_only_the_first_is_lost(paged_decode(*case.paged[:5], **splits, **options))
    assert_only_the_first_is_lost(paged_extend(*case.paged, **options))
    if what == "query":
        assert_only_the_first_is_lost(prefill(*case.packed, **options))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_softcap_does_not_hide_it(impl):
    case = spoilt("query", torch.float32)
    result = paged_extend(*case.paged, softcap=5.0, return_lse=True, impl=impl)
    assert_only_the_first_is_lost(result)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_sink_does_not_hide_it(impl):
    case = spoilt("every key", torch.float32)
    result = paged_decode(*case.paged[:5], sinks=torch.ones(4), return_lse=True, impl=impl)
    assert_only_the_first_is_lost(result)


@pytest.mark.parametrize("impl", ["reference", "native", "triton"])
@pytest.mark.parametrize("spoilt_state", [0, 1])
def test_merging_keeps_it(impl, spoilt_state):
    outputs, lses = torch.ones(2, 2, 1, 16), torch.zeros(2, 2, 1)
    outputs[spoilt_state, 0] = lses[spoilt_state, 0] = NAN
    assert_only_the_first_is_lost(merge_states(outputs, lses, impl=impl))
