"""The form of ``prefill`` for Hopper against the reference and against the pointer form."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from blocks.attention import _launch_attend, _launch_tma, _tiles, reference
from blocks.attention._call import Call
from blocks.attention._options import resolve_options
from tests.attention.paged_case import running_sums
from tests.attention.test_implementations import SETTINGS, check_close, per_head, upcast
from tests.numerics import assert_close

lengths = st.lists(
    st.tuples(st.sampled_from([0, 1, 15, 16, 17, 40]), st.sampled_from([0, 1, 63, 64, 65, 100])),
    min_size=1,
    max_size=5,
)


def packed(lens, num_heads, head_dim, dtype, seed=0) -> Any:
    """Packed queries, keys and values; query lengths may exceed key lengths."""
    generator = torch.Generator().manual_seed(seed)
    query_lens, key_lens = [q for q, _ in lens], [k for _, k in lens]
    shapes = [(sum(query_lens), num_heads[0])] + 2 * [(sum(key_lens), num_heads[1])]
    tensors = [torch.randn(*s, head_dim, generator=generator).to(dtype) for s in shapes]
    return *tensors, running_sums(query_lens), running_sums(key_lens)


def tma(query, key, value, q_bounds, k_bounds, *, causal=True, **options) -> Any:
    """The launch ``prefill`` makes on Hopper."""
    names = ("scale", "window", "softcap", "sinks", "alibi_slopes")
    resolved = resolve_options(query, *(options.get(name) for name in names))
    call = Call(query, key, value, None, k_bounds, q_bounds, resolved)
    return _launch_attend.attend(call, causal=causal, return_lse=True, form="tma_ws")


@settings(max_examples=12)
@given(
    lengths,
    st.sampled_from([(1, 1), (4, 2), (6, 2), (7, 1)]),
    st.sampled_from([16, 24, 64, 80]),
    st.sampled_from([torch.float16, torch.bfloat16]),
    st.sampled_from(SETTINGS),
    st.booleans(),
    st.integers(0, 9),
)
@example([(40, 100)], (6, 2), 64, torch.float16, SETTINGS[-1], True, 0)
@example([(100, 40)], (4, 2), 16, torch.float16, SETTINGS[4], True, 0)
@example([(17, 65), (0, 5), (1, 16), (16, 0)], (7, 1), 24, torch.float16, {}, False, 0)
def test_it_is_attention(lens, num_heads, head_dim, dtype, options, causal, seed):
    case = packed(lens, num_heads, head_dim, dtype, seed)
    options = per_head(options, num_heads[0])
    if not causal:
        options.pop("window", None)
    expected = reference.prefill(*upcast(*case), causal=causal, return_lse=True, **options)
    check_close(tma(*case, causal=causal, **options), expected)


@pytest.mark.filterwarnings("ignore:All-NaN slice:RuntimeWarning")
@pytest.mark.parametrize("lens", [[(20, 20), (30, 64)], [(40, 70)]], ids=["packed", "alone"])
def test_a_sequence_sees_nothing_of_its_neighbours(lens):
    query, keys, values, q_bounds, k_bounds = packed(lens, (4, 2), 64, torch.float16)
    wanted = reference.prefill(query, keys, values, q_bounds, k_bounds)
    room = torch.full((keys.shape[0] + 80, 2, 64), float("nan"), dtype=keys.dtype)
    for s in range(len(lens)):
        own = slice(int(k_bounds[s]), int(k_bounds[s + 1]))
        k, v = room.clone(), room.clone()  # everything but this sequence's keys is NaN
        k[own], v[own] = keys[own], values[own]
        out = tma(query, k, v, q_bounds, k_bounds).output
        rows = slice(int(q_bounds[s]), int(q_bounds[s + 1]))
        assert_close(out[rows], wanted[rows])


def test_fused_projections_are_read_in_place():
    query, keys, values, *bounds = packed([(20, 20)], (4, 2), 64, torch.float16)
    fused = torch.cat([query, keys, values], dim=1)
    views = fused[:, :4], fused[:, 4:6], fused[:, 6:]
    assert _launch_tma.takes(*views)
    assert all(map(_launch_tma.one_map, views))
    assert_close(tma(*views, *bounds).output, reference.prefill(query, keys, values, *bounds))
    by_head = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in (query, keys, values)]
    assert not _launch_tma.one_map(by_head[0])  # one program an item, then
    assert_close(tma(*by_head, *bounds).output, reference.prefill(query, keys, values, *bounds))


def test_what_descriptors_cannot_reach_takes_the_pointer_form():
    q, k, v, *_ = packed([(20, 20)], (4, 2), 64, torch.float16)
    assert _launch_tma.takes(q, k, v)
    flat = torch.zeros(k.numel() + 8, dtype=torch.float16)
    shifted = flat[1 : k.numel() + 1].view_as(k)
    assert not _launch_tma.takes(q, shifted, v)  # address
    assert not _launch_tma.takes(q, k[..., :60].contiguous(), v)  # stride of 120 bytes
    assert not _launch_tma.takes(q, k[:1].expand(20, -1, -1), v)  # stride of 0
    assert not _launch_tma.takes(q, k[:0], v)
    assert not _launch_tma.takes(q.float(), k.float(), v.float())


def test_a_batch_invariant_call_takes_the_tiles_of_extend(monkeypatch):
    asked = []

    def choose(*arguments):
        asked.append(arguments)
        return _tiles.Tiles(16, 64, 4, 1)

    monkeypatch.setattr(_tiles, "choose_tiles", choose)
    query, keys, values, q_bounds, k_bounds = packed([(4, 4)], (4, 2), 16, torch.float16)
    options = resolve_options(query, None, None, None, None, None)
    call = Call(query, keys, values, None, k_bounds, q_bounds, options)
    for invariant in (False, True):
        _launch_attend.attend(call, batch_invariant=invariant)
    assert [(a[0], a[-1]) for a in asked] == [("prefill", None), ("extend", "pointer")]


def test_the_allocator_of_the_caller_is_left_alone():
    from triton.runtime import _allocation

    before = _allocation._allocator.get()
    seen = []
    _launch_tma.with_workspace(
        lambda: seen.append(_allocation._allocator.get()(256, 128, None)), torch.device("cpu")
    )
    assert seen[0].numel() == 256
    assert _allocation._allocator.get() is before


@pytest.mark.gpu
@pytest.mark.parametrize("lens", [[4096], [1000, 1, 0, 3000, 129], [128] * 40], ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128, 256])
def test_on_hopper_it_is_the_pointer_form_and_repeats_its_bits(device, lens, head_dim):
    if _tiles.chip(device) != "sm_90":
        return
    generator = torch.Generator(device).manual_seed(0)
    query, keys, values = (
        torch.randn(sum(lens), h, head_dim, device=device, generator=generator).bfloat16()
        for h in (16, 4, 4)
    )
    bounds = running_sums(lens, device)
    options = resolve_options(query, None, None, None, None, None)
    call = Call(query, keys, values, None, bounds, bounds, options)
    both = {
        form: [_launch_attend.attend(call, return_lse=True, form=form) for _ in range(5)]
        for form in ("tma_ws", "pointer")
    }
    first, *others = both["tma_ws"]
    assert all(torch.equal(first.output, other.output) for other in others)
    check_close(first, both["pointer"][0])
