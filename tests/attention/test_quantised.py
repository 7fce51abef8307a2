"""Quantised caches: the same attention as over the values they stand for."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from blocks.attention import paged_decode, paged_decode_work, paged_extend, reference
from blocks.attention._scales import scale_kind
from tests.attention.paged_case import paged_case
from tests.attention.quantised_case import KINDS, STORED, quantise, quantised_case, scale_shape
from tests.numerics import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SETTINGS = [{}, {"window": 20}, {"softcap": 3.0, "sinks": torch.linspace(-1, 1, 4)}]

shapes = st.fixed_dictionaries(
    {
        "head_dim": st.sampled_from([16, 24, 64, 80]),
        "block_size": st.sampled_from([1, 5, 16]),
        "dtype": st.sampled_from(DTYPES),
        "seed": st.integers(0, 99),
    }
)
kinds = st.sampled_from(KINDS)
stored_types = st.sampled_from(STORED)
lengths = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([0, 1, 15, 16, 17, 64, 65, 130])),
    min_size=1,
    max_size=3,
)


def check_close(actual, expected):
    assert_close(actual.output, expected.output, what="output")
    assert_close(actual.lse, expected.lse, what="lse", slack=3)  # logs of long float32 sums


def check(impl, lens, stored, k_kind, v_kind, shape, options):
    query_lens, seq_lens = [min(q, k) for q, k in lens], [k for _, k in lens]
    case, scales, meant = quantised_case(query_lens, seq_lens, stored, k_kind, v_kind, **shape)
    expected = reference.paged_extend(*meant.paged, return_lse=True, **options)
    check_close(
        paged_extend(*case.paged, **scales, return_lse=True, impl=impl, **options), expected
    )
    ones = [1] * len(seq_lens)
    case, scales, meant = quantised_case(ones, seq_lens, stored, k_kind, v_kind, **shape)
    expected = reference.paged_decode(*meant.paged[:5], return_lse=True, **options)
    check_close(
        paged_decode(*case.paged[:5], **scales, return_lse=True, impl=impl, **options), expected
    )


@pytest.mark.parametrize("impl", ["native", "torch", "reference"])
@settings(max_examples=25)
@given(lengths, stored_types, kinds, kinds, shapes, st.sampled_from(SETTINGS))
def test_equals_attention_over_what_is_meant(impl, lens, stored, k_kind, v_kind, shape, options):
    check(impl, lens, stored, k_kind, v_kind, shape, options)


@settings(max_examples=6)
@given(lengths, stored_types, kinds, kinds, shapes, st.sampled_from(SETTINGS))
@example([(5, 70), (1, 16)], torch.float8_e4m3fn, "token", "head", {"dtype": DTYPES[1]}, {})
@example([(5, 70), (1, 16)], torch.int8, "head", "token", {"dtype": DTYPES[2]}, SETTINGS[1])
@example([(5, 70)], torch.float8_e4m3fn, "block", "tensor", {"dtype": DTYPES[0]}, SETTINGS[2])
def test_triton_equals_attention_over_what_is_meant(lens, stored, k_kind, v_kind, shape, options):
    check("triton", lens, stored, k_kind, v_kind, shape, options)


def every_byte(stored: torch.dtype):
    """One key of each stored byte but NaN, told apart by the softmax of a value of its own."""
    numbers = torch.arange(256, dtype=torch.uint8)
    if stored == torch.float8_e4m3fn:
        numbers = torch.where((numbers & 0x7F) == 0x7F, 0, numbers)
    cache = numbers.view(stored).view(1, 256, 1, 1).expand(1, 256, 1, 16).contiguous()
    table, lens = torch.zeros(1, 1, dtype=torch.int32), torch.tensor([256], dtype=torch.int32)
    return cache, table, lens


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
@pytest.mark.parametrize("impl", ["native", "triton", "reference"])
def test_every_stored_byte_is_read_exactly(impl, stored, dtype):
    cache, table, lens = every_byte(stored)
    one = torch.ones(1)
    for i in range(256):  # one key alone: its value, to the last bit
        query = torch.zeros(1, 1, 16, dtype=dtype)
        lens = torch.tensor([i + 1], dtype=torch.int32)
        if impl == "triton" and i % 8 not in (1, 7):
            continue  # the interpreter is slow; bytes of every exponent and sign remain
        out = paged_decode(
            query, cache, cache, table, lens, window=1, k_scale=one, v_scale=one, impl=impl
        )
        assert torch.equal(out[0, 0], cache[0, i, 0].float().to(dtype)), i


@pytest.mark.parametrize("impl", ["native", "triton", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_a_stored_nan_that_is_seen_reaches_the_output(impl, dtype):
    case, scales, _ = quantised_case([1, 1], [20, 20], torch.float8_e4m3fn, "head", dtype=dtype)
    block = case.key_cache[int(case.block_table[0, 0])].view(torch.uint8)
    block[3] = 0x7F
    out = paged_decode(*case.paged[:5], **scales, impl=impl)
    assert out[0].isnan().all()
    assert out[1].isfinite().all()


@pytest.mark.parametrize("impl", ["native", "torch", "triton", "reference"])
def test_float8_without_scales_is_what_it_says(impl):
    case, scales, _ = quantised_case([1], [20], torch.float8_e4m3fn, "tensor", "tensor")
    one = {name: torch.ones(1) for name in scales}
    plain = paged_decode(*case.paged[:5], impl=impl)
    assert_close(plain, paged_decode(*case.paged[:5], **one, impl=impl))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_bits_do_not_depend_on_how_scales_are_spread(dtype):
    """A scale that is the same everywhere may be given in any kind: nearly the same arithmetic."""
    case, _, _ = quantised_case([1, 7], [600, 70], torch.int8, "tensor", "tensor", dtype=dtype)
    outputs = []
    for kind in KINDS:
        scale = torch.full(scale_shape(kind, case.key_cache), 0.015625)  # a power of two
        outputs.append(paged_extend(*case.paged, k_scale=scale, v_scale=scale, impl="native"))
    for output in outputs[1:]:
        assert torch.equal(output, outputs[0])


def test_native_reads_more_rows_and_heads_than_one_tile():
    shape = {"num_heads": 8, "num_kv_heads": 8, "dtype": torch.bfloat16}
    case, scales, meant = quantised_case([100], [700], torch.float8_e4m3fn, "token", **shape)
    expected = reference.paged_extend(*meant.paged)
    assert_close(paged_extend(*case.paged, **scales, impl="native"), expected, dtype=torch.bfloat16)


def test_what_scales_belong_to_is_told_by_their_shape():
    cache = torch.zeros(9, 16, 2, 64, dtype=torch.int8)
    assert scale_kind(None, cache) == "none"
    for kind in KINDS:
        assert scale_kind(torch.ones(scale_shape(kind, cache)), cache) == kind
    assert scale_kind(torch.ones(1), cache) == "tensor"


REFUSED = [
    ({}, ValueError, "k_scale: expected scales beside an int8 cache"),
    ({"k_scale": torch.ones(())}, ValueError, "v_scale"),
    ({"k_scale": torch.ones(3), "v_scale": torch.ones(())}, ValueError, "k_scale shape"),
    ({"k_scale": torch.ones(()).double(), "v_scale": torch.ones(())}, TypeError, "k_scale dtype"),
    ({"k_scale": torch.ones(()), "v_scale": torch.ones(4)[::2]}, ValueError, "v_scale strides"),
]


@pytest.mark.parametrize(("scales", "error", "message"), REFUSED)
def test_scales_that_do_not_fit(scales, error, message):
    case, _, _ = quantised_case([1], [20], torch.int8, "tensor", "tensor")
    for impl in ("reference", "native", "triton"):
        with pytest.raises(error, match=message):
            paged_decode(*case.paged[:5], **scales, impl=impl)
        with pytest.raises(error, match=message):
            paged_extend(*case.paged, **scales, impl=impl)


def test_scales_beside_a_cache_that_has_none_are_refused():
    case = paged_case([1], [20])
    with pytest.raises(ValueError, match="k_scale: expected None beside"):
        paged_decode(*case.paged[:5], k_scale=torch.ones(()))


def test_work_counts_stored_bytes_and_scales():
    def num_bytes(kv_itemsize: int, scale_kind: str) -> int:
        sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "itemsize": 2}
        return paged_decode_work(
            [33], **sizes, kv_itemsize=kv_itemsize, scale_kind=scale_kind
        ).bytes

    narrow = num_bytes(1, "none")
    assert num_bytes(2, "none") - narrow == 2 * 33 * 2 * 8
    per_kind = {"none": 0, "tensor": 1, "head": 2, "block": 3 * 2, "token": 33 * 2}
    for kind, count in per_kind.items():
        assert num_bytes(1, kind) - narrow == 2 * 4 * count


def test_a_spoilt_scale_is_seen():
    """The comparison above can fail: one wrong scale of a seen token moves the result."""
    case, scales, meant = quantise(paged_case([1], [20]), torch.int8, "token", "token")
    expected = reference.paged_decode(*meant.paged[:5])
    scales["v_scale"][int(case.block_table[0, 1]), 2] *= 1.5
    with pytest.raises(AssertionError):
        assert_close(paged_decode(*case.paged[:5], **scales, impl="native"), expected)
