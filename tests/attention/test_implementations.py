"""Every implementation against the reference: shapes drawn, numbers seeded, the rest poisoned."""

import functools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from blocks.attention import merge_states, paged_decode, paged_extend, prefill, reference
from tests.attention.paged_case import PagedCase, paged_case, running_sums
from tests.numerics import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FAST = ["torch", "native"]
SETTINGS = [
    {},
    {"window": 1},
    {"window": 7},
    {"softcap": 3.0},
    {"sinks": True},
    {"alibi_slopes": True},
    {"window": 20, "softcap": 5.0, "sinks": True, "alibi_slopes": True, "scale": 0.2},
]


def per_head(options: dict, num_heads: int) -> dict:
    """Replace True by a value per head."""
    values = torch.linspace(-0.5, 1.0, num_heads)
    return {k: values if v is True else v for k, v in options.items()}


def upcast(*tensors):
    return [t.float() if t.is_floating_point() else t for t in tensors]


def check_close(actual, expected):
    assert_close(actual.output, expected.output, what="output")
    assert_close(actual.lse, expected.lse, what="lse", slack=3)  # logs of long float32 sums


lengths = st.lists(
    st.tuples(st.integers(0, 40), st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 130])),
    min_size=1,
    max_size=4,
)
heads = st.sampled_from([(1, 1), (4, 2), (6, 2), (7, 1), (3, 3)])
shapes = st.fixed_dictionaries(
    {
        "head_dim": st.sampled_from([16, 24, 64, 80]),
        "block_size": st.sampled_from([1, 5, 16, 32]),
        "dtype": st.sampled_from(DTYPES),
        "seed": st.integers(0, 99),
    }
)


def build(lens, num_heads, shape) -> PagedCase:
    query_lens = [min(q, k) for q, k in lens]
    return paged_case(
        query_lens,
        [k for _, k in lens],
        num_heads=num_heads[0],
        num_kv_heads=num_heads[1],
        **shape,
    )


def check_extend(impl, lens, num_heads, shape, options):
    case, options = build(lens, num_heads, shape), per_head(options, num_heads[0])
    expected = reference.paged_extend(*upcast(*case.paged), return_lse=True, **options)
    check_close(paged_extend(*case.paged, return_lse=True, impl=impl, **options), expected)
    check_close(prefill(*case.packed, return_lse=True, impl=impl, **options), expected)
    if impl == "torch":
        assert_close(paged_extend(*case.paged, impl=impl, **options), expected.output)
        assert_close(prefill(*case.packed, impl=impl, **options), expected.output)


def check_decode(impl, lens, num_heads, shape, options, num_splits=None):
    lens = [(1, n) for n in lens]
    case = paged_case(
        [1] * len(lens),
        [n for _, n in lens],
        num_heads=num_heads[0],
        num_kv_heads=num_heads[1],
        **shape,
    )
    options = per_head(options, num_heads[0])
    expected = reference.paged_decode(*upcast(*case.paged[:5]), return_lse=True, **options)
    how = {"impl": impl, "num_splits": num_splits, "return_lse": True}
    check_close(paged_decode(*case.paged[:5], **how, **options), expected)


@pytest.mark.parametrize("impl", FAST)
@given(lengths, heads, shapes, st.sampled_from(SETTINGS))
def test_extend_and_prefill(impl, lens, num_heads, shape, options):
    check_extend(impl, lens, num_heads, shape, options)


@pytest.mark.parametrize("impl", FAST)
@given(st.lists(st.integers(0, 140), max_size=5), heads, shapes, st.sampled_from(SETTINGS))
def test_decode(impl, lens, num_heads, shape, options):
    check_decode(impl, lens, num_heads, shape, options)


@settings(max_examples=8)
@given(lengths, heads, shapes, st.sampled_from(SETTINGS))
@example([(17, 65), (0, 5), (1, 16)], (7, 1), {"dtype": torch.bfloat16}, SETTINGS[-1])
def test_triton_extend_and_prefill(lens, num_heads, shape, options):
    check_extend("triton", lens, num_heads, shape, options)


@settings(max_examples=8)
@given(
    st.lists(st.integers(0, 140), min_size=1, max_size=3),
    heads,
    shapes,
    st.sampled_from(SETTINGS),
    st.sampled_from([None, 1, 2, 5]),
)
@example([130, 0, 65], (6, 2), {"dtype": torch.bfloat16}, SETTINGS[-1], 3)
def test_triton_decode(lens, num_heads, shape, options, num_splits):
    check_decode("triton", lens, num_heads, shape, options, num_splits)


@pytest.mark.parametrize("impl", ["torch", "native", "triton", "reference"])
def test_without_causal_every_key_is_seen(impl):
    case = paged_case([3, 5], [20, 2])
    query, keys, values, _, _ = case.packed
    bounds = running_sums([3, 5]), running_sums([20, 2])
    expected = reference.prefill(query, keys, values, *bounds, causal=False)
    actual = prefill(query, keys, values, *bounds, causal=False, impl=impl)
    assert_close(actual, expected)


@pytest.mark.parametrize("impl", ["torch", "native", "triton", "reference"])
def test_more_queries_than_keys_leave_the_first_without_any(impl):
    case = paged_case([5, 2], [5, 2])
    keys, values = torch.cat([case.keys[0][:2]]), torch.cat([case.values[0][:2]])
    bounds = running_sums([5, 2]), running_sums([2, 0])
    out = prefill(case.query, keys, values, *bounds, impl=impl)
    assert (out[:3] == 0).all()
    assert (out[5:] == 0).all()
    assert_close(out, reference.prefill(case.query, keys, values, *bounds))


@pytest.mark.parametrize("impl", ["torch", "native", "triton"])
def test_huge_scores_under_a_softcap_stay_finite(impl):
    case = paged_case([2], [40])
    case.query *= 1e18
    options = {"softcap": 50.0, "return_lse": True}
    out = paged_extend(*case.paged, impl=impl, **options)
    assert torch.isfinite(out.output).all()
    check_close(out, reference.paged_extend(*case.paged, **options))


@pytest.mark.parametrize("impl", ["native", "torch", "triton"])
def test_renaming_blocks_changes_nothing(impl):
    case = paged_case([4, 1], [40, 70])
    order = torch.randperm(len(case.key_cache), generator=torch.Generator().manual_seed(1))
    place = torch.argsort(order).int()
    table = torch.where(case.block_table < 0, case.block_table, place[case.block_table.long()])
    renamed = case.key_cache[order], case.value_cache[order], table
    run = functools.partial(paged_extend, impl=impl)
    before = run(*case.paged)
    after = run(case.query, *renamed, case.seq_lens, case.cu_seqlens_q)
    assert torch.equal(before, after)


@pytest.mark.parametrize("impl", ["native", "torch", "triton"])
@pytest.mark.parametrize("cut", [0, 1, 16, 39, 40])
def test_prefill_is_prefill_then_extend(impl, cut):
    case = paged_case([40], [40])
    whole = prefill(*case.packed, impl=impl)
    query, keys, values, table, _, _ = case.paged
    pieces = []
    for start, stop in ((0, cut), (cut, 40)):
        lens = torch.tensor([stop], dtype=torch.int32)
        bounds = running_sums([stop - start])
        part = query[start:stop], keys, values, table, lens, bounds
        pieces.append(paged_extend(*part, impl=impl))
    assert_close(torch.cat(pieces), whole)


@pytest.mark.parametrize("impl", ["native", "torch", "triton"])
def test_token_by_token_decode_is_prefill(impl):
    case = paged_case([20], [20])
    query, keys, values, table, _, _ = case.paged
    rows = [
        paged_decode(query[i : i + 1], keys, values, table, torch.tensor([i + 1]).int(), impl=impl)
        for i in range(20)
    ]
    assert_close(torch.cat(rows), prefill(*case.packed, impl=impl))


@pytest.mark.parametrize("impl", ["reference", "native", "triton"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merging_is_attention_over_the_union_in_any_order(impl, dtype):
    case = paged_case([6], [30], dtype=torch.float32)
    query, keys, values, bounds, _ = case.packed
    whole = prefill(query, keys, values, bounds, running_sums([30]), causal=False, return_lse=True)
    states = []
    for part in (slice(0, 7), slice(7, 7), slice(7, 30)):
        sums = running_sums([len(keys[part])])
        states.append(
            prefill(query, keys[part], values[part], bounds, sums, causal=False, return_lse=True)
        )
    states[1].output.fill_(float("nan"))  # saw no key, so it must not be read

    def merge(*parts):
        outputs = torch.stack([p.output for p in parts]).to(dtype)
        return merge_states(outputs, torch.stack([p.lse for p in parts]), impl=impl)

    a, b, c = states
    for merged in (merge(a, b, c), merge(c, a, b), merge(merge(a, b), c), merge(a, merge(b, c))):
        assert_close(merged.output, whole.output, dtype=dtype)
        assert_close(merged.lse, whole.lse, slack=3)


@pytest.mark.parametrize("impl", ["native", "triton", "torch"])
def test_strided_queries_and_caches_are_read_in_place(impl):
    case = paged_case([3, 1], [20, 17], num_heads=4, num_kv_heads=2)
    expected = reference.paged_extend(*case.paged)
    packed = torch.cat([case.query, case.query], dim=1)  # as a view of a fused projection
    both = torch.stack([case.key_cache, case.value_cache], dim=1)  # keys and values interleaved
    wide = torch.stack([case.block_table, case.block_table], dim=-1)
    actual = paged_extend(
        packed[:, 4:],
        both[:, 0],
        both[:, 1],
        wide[..., 0],
        case.seq_lens,
        case.cu_seqlens_q,
        impl=impl,
    )
    assert_close(actual, expected)


def test_prefill_lets_gradients_through():
    case = paged_case([5, 5], [5, 5])
    query, key, value = inputs = [t.clone().requires_grad_() for t in case.packed[:3]]
    prefill(query, key, value, case.cu_seqlens_q).square().sum().backward()
    query, key, value = twins = [t.clone().requires_grad_() for t in case.packed[:3]]
    reference.prefill(query, key, value, case.cu_seqlens_q).square().sum().backward()
    for a, b in zip(inputs, twins, strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert_close(a.grad, b.grad)


@pytest.mark.parametrize("impl", ["native", "triton", "torch"])
def test_settings_of_a_head_may_be_strided(impl):
    case, pairs = paged_case([5, 1], [5, 20]), torch.linspace(-1, 1, 8).view(4, 2)
    strided = {"sinks": pairs[:, 0], "alibi_slopes": pairs[:, 1]}
    expected = reference.paged_extend(*case.paged, **strided)
    assert_close(paged_extend(*case.paged, impl=impl, **strided), expected)
    assert_close(prefill(*case.packed, impl=impl, **strided), expected)
