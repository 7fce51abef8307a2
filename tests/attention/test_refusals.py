"""What is refused, by which error; with the annotations' own checks out of the way."""

import inspect

import pytest
import torch

from blocks.attention import _layout, merge_states, paged_decode, paged_extend, prefill
from tests.attention.paged_case import paged_case, running_sums

extend, decode, packed, merge = map(
    inspect.unwrap, (paged_extend, paged_decode, prefill, merge_states)
)


@pytest.fixture
def case():
    return paged_case([3, 1], [20, 17])


def change(case, **changes):
    names = ("query", "key_cache", "value_cache", "block_table", "seq_lens", "cu_seqlens_q")
    return [changes.get(name, getattr(case, name)) for name in names]


SETTINGS = [
    ({"window": 0}, "window"),
    ({"window": -3}, "window"),
    ({"softcap": 0.0}, "softcap"),
    ({"softcap": float("nan")}, "softcap"),
    ({"scale": -1.0}, "scale"),
    ({"scale": float("inf")}, "scale"),
    ({"sinks": torch.zeros(3)}, "sinks"),
    ({"alibi_slopes": torch.zeros(4, 1)}, "alibi_slopes"),
    ({"impl": "cuda"}, "impl"),
]


@pytest.mark.parametrize(("options", "named"), SETTINGS)
def test_settings_that_mean_nothing(case, options, named):
    with pytest.raises(ValueError, match=named):
        extend(*case.paged, **options)


def test_settings_that_cannot_take_effect(case):
    with pytest.raises(ValueError, match="window"):
        packed(*case.packed, causal=False, window=3)
    with pytest.raises(ValueError, match="num_splits"):
        paged_decode(*paged_case([1], [9]).paged[:5], num_splits=2, impl="native")
    with pytest.raises(ValueError, match="differentiable"):
        extend(case.query.requires_grad_(), *case.paged[1:], impl="native")


@pytest.mark.parametrize("impl", ["native", "torch", "reference", "triton"])
@pytest.mark.parametrize("bad_id", [-1, 10_000])
def test_block_ids_outside_the_cache_are_refused_before_any_read(case, impl, bad_id):
    case.block_table[1, 1] = bad_id
    with pytest.raises(ValueError, match=r"block_table\[1\].*block ids in \[0, "):
        extend(*case.paged, impl=impl)
    one = change(case, query=case.query[:2])[:5]
    with pytest.raises(ValueError, match=r"block_table\[1\]"):
        decode(*one, impl=impl)


@pytest.mark.parametrize("impl", ["native", "torch", "reference", "triton"])
@pytest.mark.parametrize("length", [-1, 2, 1000])
def test_lengths_that_cannot_be_are_refused(case, impl, length):
    lens = torch.tensor([length, 17], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"seq_lens\[0\]"):
        extend(*change(case, seq_lens=lens), impl=impl)


@pytest.mark.parametrize("impl", ["native", "torch", "reference"])
@pytest.mark.parametrize("bounds", [[0, 3, 5], [0, 5, 4], [1, 3, 4], [0, -1, 4], [0, 3, 3]])
def test_bounds_that_do_not_cut_up_the_queries_are_refused(case, impl, bounds):
    bounds = torch.tensor(bounds, dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seqlens_q"):
        extend(*change(case, cu_seqlens_q=bounds), impl=impl)
    query, key, value, _, key_bounds = case.packed
    with pytest.raises(ValueError, match="cu_seqlens_q"):
        packed(query, key, value, bounds, key_bounds, impl=impl)
    with pytest.raises(ValueError, match="cu_seqlens_k"):
        packed(query, key, value, case.cu_seqlens_q, bounds, impl=impl)


def test_on_an_accelerator_the_host_looks_only_when_asked(monkeypatch):
    far = torch.empty(1, device="meta")
    for said, looks in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv("BLOCKS_VALIDATE", said)
        _layout.validating.cache_clear()
        assert _layout.may_look(far) is looks
        assert _layout.may_look(torch.empty(1))
    _layout.validating.cache_clear()


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_keys_that_lie_askew_are_refused(case, impl):
    flipped = case.key_cache.transpose(1, 3).contiguous().transpose(1, 3)
    with pytest.raises(ValueError, match="head_dim stride: expected 1"):
        extend(*change(case, key_cache=flipped), impl=impl)
    one = change(case, query=case.query[:2], key_cache=flipped)[:5]
    with pytest.raises(ValueError, match="head_dim stride: expected 1"):
        decode(*one, impl=impl)


def test_shapes_that_do_not_fit(case):
    q, k, v, table, lens, bounds = case.paged
    bad = {
        "query": q[0],
        "key_cache": k[..., :32],
        "value_cache": v[:2],
        "block_table": table[:1],
        "seq_lens": lens[None],
        "cu_seqlens_q": bounds[:2],
    }
    for name, tensor in bad.items():
        with pytest.raises(ValueError, match="shape"):
            extend(*change(case, **{name: tensor}))
    with pytest.raises(ValueError, match="num_heads"):
        extend(*change(case, query=q[:, :3]))
    with pytest.raises(ValueError, match="one row per sequence"):
        decode(q, k, v, table, lens)
    with pytest.raises(ValueError, match="cu_seqlens_k"):
        packed(q, torch.cat(case.keys), torch.cat(case.values), bounds)
    with pytest.raises(ValueError, match="at least one state"):
        merge(torch.zeros(0, 1, 1, 8), torch.zeros(0, 1, 1))
    flipped = k.transpose(1, 3).contiguous().transpose(1, 3)
    with pytest.raises(ValueError, match="head_dim stride"):
        extend(*change(case, key_cache=flipped), impl="native")


@pytest.mark.parametrize("impl", ["native", "torch", "reference"])
def test_no_heads_are_refused(case, impl):
    none = change(case, query=case.query[:, :0])
    with pytest.raises(ValueError, match="num_heads"):
        extend(*none, impl=impl)
    with pytest.raises(ValueError, match="num_heads"):
        decode(case.query[:2, :0], *none[1:5], impl=impl)


@pytest.mark.parametrize("impl", ["native", "torch", "reference"])
def test_queries_of_no_sequence_are_refused(case, impl):
    nobody = {"block_table": case.block_table[:0], "seq_lens": case.seq_lens[:0]}
    bounds = case.cu_seqlens_q[-1:]  # ends at the last token, but never begins
    with pytest.raises(ValueError, match="cu_seqlens_q"):
        extend(*change(case, cu_seqlens_q=bounds, **nobody), impl=impl)
    query = case.query
    with pytest.raises(ValueError, match="cu_seqlens_q"):
        packed(query, query, query, bounds, impl=impl)


def test_dtypes_that_do_not_fit(case):
    wrong = {
        "query": case.query.int(),
        "key_cache": case.key_cache.half(),
        "value_cache": case.value_cache.half(),
        "block_table": case.block_table.long(),
        "seq_lens": case.seq_lens.long(),
        "cu_seqlens_q": case.cu_seqlens_q.long(),
    }
    for name, tensor in wrong.items():
        with pytest.raises(TypeError, match="dtype"):
            extend(*change(case, **{name: tensor}))
    with pytest.raises(TypeError, match="sinks"):
        extend(*case.paged, sinks=torch.zeros(4, dtype=torch.float16))


def test_empty_calls_give_empty_results():
    for impl in ("native", "torch", "reference", "triton"):
        assert paged_extend(*paged_case([], []).paged, impl=impl).shape == (0, 4, 64)
        assert paged_decode(*paged_case([], []).paged[:5], impl=impl).shape == (0, 4, 64)
    empty = paged_case([0], [5])
    assert paged_extend(*empty.paged).shape == (0, 4, 64)


def test_queries_alone_may_be_packed_with_other_keys():
    query, key = torch.randn(2, 4, 64), torch.randn(9, 2, 64)
    out = packed(query, key, key, running_sums([2]), running_sums([9]))
    assert out.shape == query.shape
