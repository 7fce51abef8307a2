"""The C++ implementation: bits that depend on nothing but the row, and refusals before any read."""

import pytest
import torch

from blocks.attention import paged_decode, paged_extend, prefill, reference
from tests.attention.paged_case import paged_case, running_sums
from tests.numerics import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SETTINGS = [
    {},
    {"window": 1},
    {"window": 70},
    {"softcap": 2.0},
    {"sinks": torch.linspace(-1, 1, 4)},
    {"alibi_slopes": torch.linspace(0, 1, 4)},
    {"window": 33, "softcap": 5.0, "sinks": torch.zeros(4), "scale": 0.3},
]


def upcast(*tensors):
    return [t.float() if t.is_floating_point() else t for t in tensors]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "plain")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 33, 256])
def test_equals_the_reference(head_dim, dtype, settings):
    case = paged_case([3, 1, 0, 40, 16], [3, 700, 20, 130, 16], head_dim=head_dim, dtype=dtype)
    expected = reference.paged_extend(*upcast(*case.paged), return_lse=True, **settings)
    actual = paged_extend(*case.paged, return_lse=True, impl="native", **settings)
    assert_close(actual.output, expected.output)
    assert_close(actual.lse, expected.lse)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "plain")
def test_any_cut_into_calls_gives_the_same_bits(settings, dtype):
    case = paged_case([1100], [1100], head_dim=32, dtype=dtype)
    settings = {**settings, "return_lse": True, "impl": "native"}
    whole = prefill(*case.packed, **settings)
    query, keys, values, table, _, _ = case.paged
    for start, stop in [(0, 64), (64, 65), (65, 700), (700, 1100), (1099, 1100)]:
        lens = torch.tensor([stop], dtype=torch.int32)
        part = query[start:stop], keys, values, table, lens, running_sums([stop - start])
        extended = paged_extend(*part, **settings)
        assert torch.equal(extended.output, whole.output[start:stop])
        assert torch.equal(extended.lse, whole.lse[start:stop])
        if stop - start == 1:
            decoded = paged_decode(*part[:5], **settings)
            assert torch.equal(decoded.output, extended.output)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_batch_neighbours_and_threads_change_no_bit(threads):
    lens = [1, 513, 40, 1025, 2, 64, 512]
    case = paged_case([1] * len(lens), lens, num_heads=8, dtype=torch.bfloat16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        together = paged_decode(*case.paged[:5], impl="native")
        for s in range(len(lens)):
            one = slice(s, s + 1)
            alone = paged_decode(
                case.query[one],
                case.key_cache,
                case.value_cache,
                case.block_table[one],
                case.seq_lens[one],
                impl="native",
            )
            assert torch.equal(alone, together[one])
    finally:
        torch.set_num_threads(before)
