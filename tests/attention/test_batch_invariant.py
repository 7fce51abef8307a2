"""A row's bits depend on its own query and context alone: cold = warm = batched = alone."""

import itertools

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from blocks.attention import (
    SlicePrefix,
    _launch_attend,
    _tiles,
    paged_decode,
    paged_extend,
    prefill,
    slice_attention,
)
from tests.attention.paged_case import paged_case, running_sums
from tests.attention.quantised_case import quantised_case
from tests.numerics import assert_close

SETTINGS = [
    {},
    {"window": 70},
    {"sinks": torch.linspace(-1, 1, 4), "softcap": 5.0},
    {"alibi_slopes": torch.linspace(0.1, 1.0, 4)},
]
EXTEND_SETTINGS = [{}, {"window": 30} | SETTINGS[2] | SETTINGS[3]]
IMPLS = ["native", "triton"]


def one(case, s: int, **changes):
    """The arguments of ``paged_decode`` for sequence ``s`` alone."""
    return [
        changes.get("query", case.query[s : s + 1]),
        changes.get("key_cache", case.key_cache),
        changes.get("value_cache", case.value_cache),
        changes.get("block_table", case.block_table[s : s + 1]),
        changes.get("seq_lens", case.seq_lens[s : s + 1]),
    ]


@pytest.mark.parametrize("options", SETTINGS, ids=lambda s: "-".join(s) or "plain")
@pytest.mark.parametrize("impl", IMPLS)
def test_decode_alone_and_in_any_batch(impl, options):
    lens = [1, 513, 40, 600, 0]
    case = paged_case([1] * len(lens), lens, head_dim=16)
    how = {**options, "impl": impl, "batch_invariant": True, "return_lse": True}
    together = paged_decode(*case.paged[:5], **how)
    for s in range(len(lens)):
        alone = paged_decode(*one(case, s), **how)
        assert torch.equal(alone.output, together.output[s : s + 1])
        assert torch.equal(alone.lse, together.lse[s : s + 1])


@pytest.mark.parametrize("impl", IMPLS)
def test_decode_whatever_the_table_the_blocks_and_the_processors(impl, monkeypatch):
    case = paged_case([1], [1100], head_dim=16)
    how = {"impl": impl, "batch_invariant": True}
    expected = paged_decode(*one(case, 0), **how)
    narrow = case.block_table[:, : -(-1100 // 16)]
    wide = torch.cat([narrow, torch.full((1, 200), -7, dtype=torch.int32)], dim=1)
    for table in (narrow, wide):
        assert torch.equal(paged_decode(*one(case, 0, block_table=table), **how), expected)
    order = torch.randperm(len(case.key_cache), generator=torch.Generator().manual_seed(1))
    place = torch.argsort(order).int()
    moved = {
        "key_cache": case.key_cache[order],
        "value_cache": case.value_cache[order],
        "block_table": place[narrow.long()],
    }
    assert torch.equal(paged_decode(*one(case, 0, **moved), **how), expected)
    monkeypatch.setattr(_tiles, "num_processors", lambda device: 500)
    assert torch.equal(paged_decode(*one(case, 0), **how), expected)


@pytest.mark.parametrize("options", EXTEND_SETTINGS, ids=lambda s: "-".join(s) or "plain")
@pytest.mark.parametrize("impl", IMPLS)
def test_extend_cold_warm_and_in_any_chunks(impl, options):
    """A prompt at once; its tail after a cached prefix; chunk by chunk; beside other sequences."""
    case = paged_case([100], [100], head_dim=16)
    how = {**options, "impl": impl, "batch_invariant": True, "return_lse": True}
    cold = paged_extend(*case.paged, **how)
    query, keys, values, table, _, _ = case.paged
    for bounds in ([60, 100], [0, 1, 34, 99, 100]):
        for start, stop in itertools.pairwise(bounds):
            lens = torch.tensor([stop], dtype=torch.int32)
            sums = running_sums([stop - start])
            part = paged_extend(query[start:stop], keys, values, table, lens, sums, **how)
            assert torch.equal(part.output, cold.output[start:stop])
            assert torch.equal(part.lse, cold.lse[start:stop])
    both = torch.cat([query[:3], query[70:], query[:40]])
    lens = torch.tensor([3, 100, 40], dtype=torch.int32)
    mixed = paged_extend(
        both, keys, values, table.expand(3, -1), lens, running_sums([3, 30, 40]), **how
    )
    assert torch.equal(mixed.output[3:33], cold.output[70:])
    assert torch.equal(mixed.output[33:], cold.output[:40])


@pytest.mark.parametrize("options", EXTEND_SETTINGS, ids=lambda s: "-".join(s) or "plain")
@pytest.mark.parametrize("impl", IMPLS)
def test_prefill_at_once_in_parts_and_in_any_batch(impl, options):
    """Queries at once; the last ones over the same keys; beside others; and by ``paged_extend``."""
    case = paged_case([100], [100], head_dim=16)
    query, keys, values, *_ = case.packed
    how = {**options, "impl": impl, "batch_invariant": True, "return_lse": True}
    cold = prefill(query, keys, values, running_sums([100]), **how)
    assert torch.equal(paged_extend(*case.paged, **how).output, cold.output)
    for start, stop in ((99, 100), (61, 100), (0, 35), (34, 99)):
        sums = running_sums([stop - start]), running_sums([stop])
        part = prefill(query[start:stop], keys[:stop], values[:stop], *sums, **how)
        assert torch.equal(part.output, cold.output[start:stop])
        assert torch.equal(part.lse, cold.lse[start:stop])
    mixed = prefill(
        torch.cat([query[:7], query[70:], query[:40]]),
        *(torch.cat([t[:7], t, t[:40]]) for t in (keys, values)),
        cu_seqlens_q=running_sums([7, 30, 40]),
        cu_seqlens_k=running_sums([7, 100, 40]),
        **how,
    )
    assert torch.equal(mixed.output[7:37], cold.output[70:])
    assert torch.equal(mixed.output[37:], cold.output[:40])


@pytest.mark.parametrize("options", EXTEND_SETTINGS, ids=lambda s: "-".join(s) or "plain")
@pytest.mark.parametrize("impl", IMPLS)
def test_slices_have_the_bits_of_prefill(impl, options):
    """Whatever the slicing, alone, in a batch, and through a prefix with gradients."""
    case = paged_case([90], [90], head_dim=16)
    query, keys, values, *_ = case.packed
    how = {**options, "impl": impl, "batch_invariant": True}
    whole = prefill(query, keys, values, running_sums([90]), return_lse=True, **how)
    prefix = SlicePrefix.empty(*keys.shape)
    for start, stop in ((0, 33), (33, 34), (34, 90)):
        rows = slice(start, stop)
        alone = slice_attention(query[rows], keys, values, start, **how)
        assert torch.equal(alone.output, whole.output[rows])
        assert torch.equal(alone.lse, whole.lse[rows])
        q, k, v = (torch.stack([t, t.flip(0)]) for t in (query[rows], keys, values))
        assert torch.equal(slice_attention(q, k, v, start, **how).output[0], whole.output[rows])
        traced = query[rows].clone().requires_grad_()
        piped = prefix.attend(traced, keys[rows], values[rows], start, **how)
        assert torch.equal(piped, whole.output[rows])


def test_prefill_with_gradients_is_the_same():
    case = paged_case([70], [70], head_dim=16)
    for impl in IMPLS:
        how = {"impl": impl, "batch_invariant": True}
        plain = prefill(*case.packed, **how)
        query = case.query.detach().clone().requires_grad_()
        traced = prefill(query, *case.packed[1:], **how)
        assert torch.equal(traced, plain)
        traced.sum().backward()
        assert query.grad is not None


def test_it_reaches_the_launch(monkeypatch):
    """One masked loop for every tile: chips round a loop without masks differently."""
    case = paged_case([20], [20], head_dim=16)
    leaf = case.query.detach().clone().requires_grad_()
    seen = []
    launch = _launch_attend.launch

    def watch(kernel, grid, tensors, numbers, constants, **options):
        seen.append(constants["ALL_MASKED"])
        launch(kernel, grid, tensors, numbers, constants, **options)

    monkeypatch.setattr(_launch_attend, "launch", watch)
    for invariant in (False, True):
        how = {"impl": "triton", "batch_invariant": invariant}
        paged_extend(*case.paged, **how)
        prefill(*case.packed, **how)
        prefill(leaf, *case.packed[1:], **how)
    assert seen == [False] * 3 + [True] * 3


@settings(max_examples=4)
@given(st.integers(1, 600), st.integers(1, 3), st.sampled_from(["token", "head"]))
def test_quantised_decode(seq_len, num_others, kind):
    lens = [seq_len, *range(7, 7 + num_others)]
    case, scales, _ = quantised_case([1] * len(lens), lens, torch.int8, kind, kind, head_dim=16)
    for impl in IMPLS:
        how = {"impl": impl, "batch_invariant": True, **scales}
        together = paged_decode(*case.paged[:5], **how)
        assert torch.equal(paged_decode(*one(case, 0), **how), together[:1])


def test_native_decode_and_extend_agree_to_the_bit_and_triton_to_rounding():
    case = paged_case([1], [700])
    extended = {impl: paged_extend(*case.paged, impl=impl) for impl in IMPLS}
    assert torch.equal(paged_decode(*case.paged[:5], impl="native"), extended["native"])
    decoded = paged_decode(*case.paged[:5], impl="triton", batch_invariant=True)
    assert_close(decoded, extended["triton"])


def test_without_it_the_batch_may_show(monkeypatch):
    """The equalities above can fail: ordinary splits follow the batch."""
    case = paged_case([1] * 5, [1100] * 5, head_dim=16)
    together = paged_decode(*case.paged[:5], impl="triton")
    alone = paged_decode(*one(case, 0), impl="triton")
    assert_close(alone, together[:1])
    assert not torch.equal(alone, together[:1])


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_it_is_refused_where_it_cannot_be_kept(impl):
    case = paged_case([1], [20])
    with pytest.raises(ValueError, match="native or triton with batch_invariant"):
        paged_decode(*case.paged[:5], impl=impl, batch_invariant=True)
    with pytest.raises(ValueError, match="native or triton with batch_invariant"):
        paged_extend(*case.paged, impl=impl, batch_invariant=True)
    with pytest.raises(ValueError, match="native or triton with batch_invariant"):
        prefill(*case.packed, impl=impl, batch_invariant=True)
    query, key, value, *_ = case.packed
    with pytest.raises(ValueError, match="native or triton with batch_invariant"):
        slice_attention(query, key, value, 0, impl=impl, batch_invariant=True)


def test_it_takes_no_number_of_splits():
    case = paged_case([1], [20])
    with pytest.raises(ValueError, match="num_splits: expected None with batch_invariant"):
        paged_decode(*case.paged[:5], impl="triton", batch_invariant=True, num_splits=2)
