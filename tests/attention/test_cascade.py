"""``cascade_decode``: the attention of ``paged_decode``, whatever is said to be shared."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from blocks._work import Work
from blocks.attention import (
    SharedPrefix,
    cascade_decode,
    cascade_decode_work,
    cascade_pays,
    paged_decode_work,
    reference,
)
from tests.attention.paged_case import PagedCase, paged_case, running_sums
from tests.attention.quantised_case import KINDS, STORED, quantise
from tests.numerics import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SETTINGS = [
    {},
    {"window": 1},
    {"window": 20},
    {"alibi_slopes": torch.linspace(0.1, 1.0, 4)},
    {"window": 50, "softcap": 4.0, "sinks": torch.linspace(-1, 1, 4), "scale": 0.2},
]


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def shared_case(groups: list[tuple[int, list[int]]], **shape):
    """Sequences of ``shared + own`` tokens whose shared full blocks are the same blocks."""
    lens = [shared + own for shared, owns in groups for own in owns]
    case = paged_case([1] * len(lens), lens, **shape)
    block_size, first = case.key_cache.shape[1], 0
    for shared, owns in groups:
        for s in range(first, first + len(owns)):
            full = shared // block_size
            case.block_table[s, :full] = case.block_table[first, :full]
            if full < -(-shared // block_size):  # a partial block, copied on write
                here, there = int(case.block_table[s, full]), int(case.block_table[first, full])
                part = shared % block_size
                for cache in (case.key_cache, case.value_cache):
                    cache[here, :part] = cache[there, :part]
        first += len(owns)
    sizes = [len(owns) for _, owns in groups]
    prefix = SharedPrefix(
        running_sums(sizes), int32(*(shared if owns else 0 for shared, owns in groups))
    )
    return case, prefix


def wide(case: PagedCase) -> list[torch.Tensor]:
    return [t.float() if t.is_floating_point() else t for t in case.paged[:5]]


def check(impl, groups, shape, options, **how):
    case, prefix = shared_case(groups, **shape)
    expected = reference.paged_decode(*wide(case), return_lse=True, **options)
    given = case.paged[:5]
    actual = cascade_decode(*given, prefixes=[prefix], return_lse=True, impl=impl, **how, **options)
    assert_close(actual.output, expected.output, what="output")
    assert_close(actual.lse, expected.lse, what="lse", slack=3)


group_lists = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 15, 16, 17, 64, 100]),
        st.lists(st.sampled_from([0, 1, 2, 16, 40]), max_size=4),
    ),
    min_size=1,
    max_size=3,
)
shapes = st.fixed_dictionaries(
    {
        "head_dim": st.sampled_from([16, 24, 64]),
        "block_size": st.sampled_from([1, 5, 16]),
        "dtype": st.sampled_from(DTYPES),
        "seed": st.integers(0, 99),
    }
)


@pytest.mark.parametrize("impl", ["native", "reference"])
@settings(max_examples=30)
@given(group_lists, shapes, st.sampled_from(SETTINGS))
def test_equals_decode(impl, groups, shape, options):
    check(impl, groups, shape, options)


@settings(max_examples=3)
@given(group_lists, shapes, st.sampled_from(SETTINGS), st.booleans())
@example([(100, [1, 2, 40]), (0, [16]), (16, [])], {"dtype": DTYPES[1]}, SETTINGS[-1], False)
@example([(64, [0, 5])], {"num_heads": 6, "num_kv_heads": 1}, {}, True)
def test_triton_equals_decode(groups, shape, options, batch_invariant):
    check("triton", groups, shape, options, batch_invariant=batch_invariant)


@pytest.mark.parametrize("impl", ["native", "triton"])
@pytest.mark.parametrize("options", SETTINGS, ids=lambda s: "-".join(s) or "plain")
def test_levels_may_be_nested(impl, options):
    """All share 32 tokens; two pairs share 20 and 0 more."""
    case, outer = shared_case([(32, [30, 31, 3, 60])])
    table, caches = case.block_table, (case.key_cache, case.value_cache)
    for block in (2, 3):
        table[1, block] = table[0, block]  # 52 tokens: block 3 is full of the same for both
    inner = SharedPrefix(int32(0, 2, 4), int32(52, 32))
    given = case.query, *caches, table, case.seq_lens
    expected = reference.paged_decode(*given, **options)
    assert_close(cascade_decode(*given, prefixes=[outer, inner], impl=impl, **options), expected)
    assert_close(cascade_decode(*given, prefixes=[], impl=impl, **options), expected)


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_a_sequence_may_end_inside_the_prefix(impl):
    case, _ = shared_case([(48, [1, 2, 3])])
    case.seq_lens[1], case.seq_lens[2] = 20, 0
    prefix = SharedPrefix(int32(0, 3), int32(48))
    expected = reference.paged_decode(*case.paged[:5], return_lse=True)
    actual = cascade_decode(*case.paged[:5], prefixes=[prefix], return_lse=True, impl=impl)
    assert_close(actual.output, expected.output)
    assert_close(actual.lse, expected.lse)


@pytest.mark.parametrize("impl", ["native", "triton"])
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_quantised_caches(impl, stored):
    for kinds in zip(KINDS, reversed(KINDS), strict=True):
        case, prefix = shared_case([(32, [1, 20]), (16, [3])])
        narrow, scales, meant = quantise(case, stored, *kinds)
        expected = reference.paged_decode(*meant.paged[:5])
        actual = cascade_decode(*narrow.paged[:5], prefixes=[prefix], impl=impl, **scales)
        assert_close(actual, expected)


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_a_row_does_not_depend_on_who_shares_its_prefix(impl):
    case, prefix = shared_case([(544, [1, 530, 3]), (16, [40])], head_dim=16)
    how = {"impl": impl, "batch_invariant": True}
    together = cascade_decode(*case.paged[:5], prefixes=[prefix], **how)
    for s, shared in itertools.product(range(4), (None,)):
        shared = 544 if s < 3 else 16
        alone = cascade_decode(
            case.query[s : s + 1],
            case.key_cache,
            case.value_cache,
            case.block_table[s : s + 1],
            case.seq_lens[s : s + 1],
            [SharedPrefix(int32(0, 1), int32(shared))],
            **how,
        )
        assert torch.equal(alone, together[s : s + 1])


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_the_prefix_is_read_through_the_first_sequence_alone(impl):
    """What the others hold of it in a partial block of their own is not read."""
    case, prefix = shared_case([(20, [5, 5])])
    expected = reference.paged_decode(*case.paged[:5])
    other = int(case.block_table[1, 1])
    case.key_cache[other, :4] = case.value_cache[other, :4] = float("nan")
    assert_close(cascade_decode(*case.paged[:5], prefixes=[prefix], impl=impl), expected)


REFUSED = [
    ([SharedPrefix(int32(0, 2), int32(16))], r"prefixes\[0\].cu_groups: expected running sums"),
    ([SharedPrefix(int32(0, 3), int32(16, 3))], r"prefixes\[0\].lens shape"),
    ([SharedPrefix(int32(0, 3), int32(-1))], r"prefixes\[0\].lens\[0\]: expected from 0"),
    ([SharedPrefix(int32(0, 3), int32(999))], r"prefixes\[0\].lens\[0\]: expected from 0"),
    ([SharedPrefix(int32(0, 3), int32(32))], r"the same blocks.*block_table\[1\]"),
    ([SharedPrefix(int32(0, 1, 3), int32(60, 16))], r"blocks of block_table\[0\] with ids in"),
    ([SharedPrefix(int32(0), int32())], "at least one group"),
    (
        [SharedPrefix(int32(0, 1, 3), int32(16, 16)), SharedPrefix(int32(0, 3), int32(16))],
        r"prefixes\[1\].cu_groups: expected bounds at \[1\] too",
    ),
]


@pytest.mark.parametrize("impl", ["native", "triton", "reference"])
@pytest.mark.parametrize(("prefixes", "message"), REFUSED)
def test_prefixes_that_cannot_be_are_refused(impl, prefixes, message):
    case, _ = shared_case([(16, [30, 31, 32])])
    with pytest.raises(ValueError, match=message):
        cascade_decode(*case.paged[:5], prefixes=prefixes, impl=impl)


def test_it_pays_for_many_sequences_and_long_prefixes():
    sizes = {"num_kv_heads": 8, "head_dim": 128, "kv_itemsize": 2}
    assert not cascade_pays(1, 100_000, **sizes)
    for n, shared in itertools.product((2, 8, 64), (64, 1024, 16384)):
        if cascade_pays(n, shared, **sizes):
            assert cascade_pays(2 * n, shared, **sizes)
            assert cascade_pays(n, 2 * shared, **sizes)
    assert cascade_pays(2, 16, launch_bytes=0, **sizes)


def test_work_counts_a_prefix_once_a_group():
    lens, groups = [40, 41, 50], [(2, 32), (1, 16)]

    def saved(window: int | None) -> int:
        def work(function, *lengths) -> Work:
            sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "itemsize": 2}
            return function(*lengths, window=window, **sizes)

        plain, shared = work(paged_decode_work, lens), work(cascade_decode_work, lens, groups)
        assert plain.flops == shared.flops
        return plain.bytes - shared.bytes

    key = 2 * 2 * 8 * 2  # bytes of a key and its value
    assert saved(None) == 32 * key
    assert saved(12) == 3 * key  # of the prefix the second sequence sees positions 29 to 31
