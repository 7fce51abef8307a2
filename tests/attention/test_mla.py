"""Latent attention: the absorbed form equals attention over decompressed keys and values."""

import hypothesis.strategies as st
import pytest
import torch
from einops import repeat
from hypothesis import example, given, settings
from torch import Tensor

from blocks.attention import mla_decode, reference
from tests.aot import TARGETS, check_report, compile_all
from tests.attention import aot_mla
from tests.attention.paged_case import paged_case
from tests.numerics import assert_close

OPTIONS = [
    {},
    {"window": 9},
    {"softcap": 3.0},
    {"sinks": True},
    {"alibi_slopes": True},
    {"window": 40, "softcap": 5.0, "sinks": True, "alibi_slopes": True},
]
LENGTHS = st.lists(st.sampled_from([0, 1, 15, 16, 17, 31, 33, 64, 100]), min_size=1, max_size=3)


def latent_case(seq_lens, num_heads=4, row_dim=48, block_size=16, dtype=torch.float32, seed=0):
    """query, latent_cache, block_table, seq_lens; unused slots NaN, unused table entries invalid"""
    case = paged_case(
        [1] * len(seq_lens),
        seq_lens,
        num_heads=num_heads,
        num_kv_heads=1,
        head_dim=row_dim,
        block_size=block_size,
        dtype=dtype,
        seed=seed,
    )
    return case.query, case.key_cache[:, :, 0], case.block_table, case.seq_lens


def per_head(options: dict, num_heads: int) -> dict:
    values = torch.linspace(-0.5, 1.0, num_heads)
    return {k: values if v is True else v for k, v in options.items()}


def check(impl, seq_lens, num_heads, dims, block_size, dtype, options, how=None):
    latent_dim, rope_dim = dims
    inputs = latent_case(seq_lens, num_heads, latent_dim + rope_dim, block_size, dtype)
    wide = [t.float() if t.is_floating_point() else t for t in inputs]
    settings = per_head(options, num_heads) | {"scale": 0.15, "latent_dim": latent_dim}
    expected = reference.mla_decode(*wide, return_lse=True, **settings)
    actual = mla_decode(*inputs, impl=impl, return_lse=True, **settings, **(how or {}))
    assert actual.output.dtype == dtype
    assert_close(actual.output, expected.output, what="output")
    assert_close(actual.lse, expected.lse, what="lse", slack=3)


@given(
    LENGTHS,
    st.sampled_from([1, 3, 16, 20]),
    st.sampled_from([(32, 16), (40, 8), (512, 64)]),
    st.sampled_from([1, 5, 16]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(OPTIONS),
)
def test_native(seq_lens, num_heads, dims, block_size, dtype, options):
    check("native", seq_lens, num_heads, dims, block_size, dtype, options)


@settings(max_examples=10)
@given(
    LENGTHS,
    st.sampled_from([1, 3, 16, 20]),
    st.sampled_from([(32, 16), (40, 8)]),
    st.sampled_from([1, 5, 16]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(OPTIONS),
    st.sampled_from([{}, {"num_splits": 1}, {"num_splits": 3}, {"batch_invariant": True}]),
)
@example([17, 0, 100], 20, (40, 8), 16, torch.float32, OPTIONS[-1], {"num_splits": 5})
@example([33], 3, (512, 64), 16, torch.float16, {}, {})
def test_triton(seq_lens, num_heads, dims, block_size, dtype, options, how):
    check("triton", seq_lens, num_heads, dims, block_size, dtype, options, how)


@settings(max_examples=12)
@given(
    LENGTHS,
    st.sampled_from([torch.int8, torch.float8_e4m3fn]),
    st.sampled_from(["tensor", "block", "token"]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([{}, OPTIONS[-1]]),
)
def test_quantised_latents(seq_lens, stored, kind, dtype, options):
    query, cache, table, lens = latent_case(seq_lens, dtype=dtype)
    generator = torch.Generator().manual_seed(2)
    codes = torch.randint(-100, 100, cache.shape, generator=generator)
    cache = codes.to(stored) if stored == torch.int8 else (codes / 30).to(stored)
    shape = {"tensor": (), "block": cache.shape[:1], "token": cache.shape[:2]}[kind]
    scale = torch.rand(shape, generator=generator) / 50 + 1e-3
    if kind == "token":  # scales of slots that hold no token are not read
        used = torch.zeros(cache.shape[:2], dtype=torch.bool)
        for row, length in zip(table.tolist(), lens.tolist(), strict=True):
            for position in range(length):
                used[row[position // 16], position % 16] = True
        scale = scale.where(used, torch.nan)
    how = {**per_head(options, 4), "scale": 0.2, "latent_dim": 32, "latent_scale": scale}
    args = cache, table, lens
    expected = reference.mla_decode(query.float(), *args, return_lse=True, **how)
    for impl in ("native", "triton"):
        actual = mla_decode(query, *args, impl=impl, return_lse=True, **how)
        assert_close(actual.output, expected.output, what=f"{impl} output")
        assert_close(actual.lse, expected.lse, what=f"{impl} lse", slack=3)


def test_the_absorbed_form_is_attention_over_decompressed_keys_and_values(seeded):
    heads, nope, rope, latent, value, length = 3, 24, 8, 32, 20, 50
    make = lambda *shape: torch.randn(*shape, generator=seeded, dtype=torch.float64)  # noqa: E731
    up_key, up_value = make(heads, nope, latent), make(heads, latent, value)
    latents, rotated = make(length, latent), make(length, rope)
    q_nope, q_rope = make(1, heads, nope), make(1, heads, rope)
    shared = repeat(rotated, "token dim -> token head dim", head=heads)
    keys = torch.cat([torch.einsum("tl,hnl->thn", latents, up_key), shared], -1)
    values = torch.einsum("tl,hlv->thv", latents, up_value)
    scale = (nope + rope) ** -0.5
    scores = torch.einsum("qhd,thd->hqt", torch.cat([q_nope, q_rope], -1), keys) * scale
    expected = torch.einsum("hqt,thv->qhv", scores.softmax(-1), values)

    cache, table, lens = _paged(torch.cat([latents, rotated], -1), block_size=16)
    query = torch.cat([torch.einsum("qhn,hnl->qhl", q_nope, up_key), q_rope], -1)
    output = mla_decode(query, cache, table, lens, scale=scale, latent_dim=latent)
    assert_close(torch.einsum("qhl,hlv->qhv", output, up_value), expected)


@pytest.mark.parametrize("impl", ["native", "triton"])
def test_a_row_does_not_depend_on_its_batch(impl):
    together = latent_case([100, 17, 64])
    settings = {"scale": 0.1, "latent_dim": 32, "impl": impl, "batch_invariant": True}
    outputs = mla_decode(*together, **settings)
    for s in range(3):
        query, cache, table, lens = together
        width = -(-int(lens[s]) // 16)  # a narrower table too: other capacity, same bits
        alone = mla_decode(
            query[s : s + 1], cache, table[s : s + 1, :width], lens[s : s + 1], **settings
        )
        assert torch.equal(alone[0], outputs[s])


def test_strides_are_free_and_blocks_may_be_renamed():
    query, cache, table, lens = latent_case([40, 20])
    settings = {"scale": 0.1, "latent_dim": 32, "impl": "triton"}
    expected = mla_decode(query, cache, table, lens, **settings)
    padded = torch.full((*cache.shape[:2], 64), float("nan"))
    padded[..., :48] = cache
    assert torch.equal(mla_decode(query, padded[..., :48], table, lens, **settings), expected)
    order = torch.randperm(len(cache), generator=torch.Generator().manual_seed(1))
    renamed, where = cache[order], order.argsort()
    valid = table >= 0
    other = torch.where(valid, where[table.clamp_min(0).long()].int(), table)
    assert torch.equal(mla_decode(query, renamed, other, lens, **settings), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_dim": 48}, "latent_dim: expected from 1 to 47, got 48"),
        ({"latent_dim": 0}, "latent_dim: expected"),
        ({"scale": 0.0}, "scale: expected"),
        ({"num_splits": 2, "batch_invariant": True, "impl": "triton"}, "num_splits: expected None"),
        ({"latent_scale": torch.ones(3)}, "latent_scale: expected None"),
        ({"num_splits": 0, "impl": "triton"}, "num_splits: expected a positive"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        mla_decode(*latent_case([20]), **{"scale": 0.1, "latent_dim": 32, **change})


@pytest.mark.parametrize("impl", ["native", "triton", "reference"])
@pytest.mark.parametrize("bad", [-1, 10_000])
def test_block_ids_outside_the_cache_are_refused(impl, bad):
    query, cache, table, lens = latent_case([20])
    table[0, 1] = bad
    with pytest.raises(ValueError, match=r"block_table\[0\]: expected block ids in"):
        mla_decode(query, cache, table, lens, scale=0.1, latent_dim=32, impl=impl)


def _paged(rows: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
    num_blocks = -(-len(rows) // block_size)
    cache = rows.new_full((num_blocks, block_size, rows.shape[1]), float("nan"))
    cache.view(-1, rows.shape[1])[: len(rows)] = rows
    table = torch.arange(num_blocks, dtype=torch.int32)[None]
    return cache, table, torch.tensor([len(rows)], dtype=torch.int32)


@pytest.mark.parametrize("target", TARGETS)
def test_every_chip_takes_it_without_spills(target):
    reports = compile_all("tests.attention.aot_mla", target)
    assert set(reports) == {case.name for case in aot_mla.CASES if target in case.targets}
    for report in reports.values():
        check_report(report)
