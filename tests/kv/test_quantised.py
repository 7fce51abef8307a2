"""Quantised caches: what a scale's shape means, how values round, every implementation alike."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.kv import reference, write_kv, write_kv_work
from blocks.kv.scales import (
    LIMITS,
    SMALLEST,
    dequantise,
    quantise,
    scale_kind,
    spread_scale,
    token_scale,
)
from tests.kv.test_write import place

IMPLS = ("torch", "native", "triton")
DTYPES = tuple(LIMITS)
KINDS = ("tensor", "one", "head", "block", "token")
E4M3 = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def make_scale(kind: str, sizes: tuple[int, int, int], generator: torch.Generator) -> torch.Tensor:
    num_blocks, block_size, num_heads = sizes
    shape = {
        "tensor": (),
        "one": (1,),
        "head": (num_heads,),
        "block": (num_blocks, num_heads),
        "token": (num_blocks, block_size, num_heads),
    }[kind]
    if kind == "token":
        return torch.full(shape, torch.nan)  # must be written before it is read
    return torch.rand(shape, generator=generator) * 0.02 + 0.002


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().view(torch.uint8)


def poisoned(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """0x7f everywhere: NaN in fp8, and a code the tests do not expect in int8."""
    return torch.full(shape, 0x7F, dtype=torch.uint8).view(dtype)


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=settings().max_examples // 2)
@given(
    num_tokens=st.integers(0, 12),
    block_size=st.sampled_from([1, 4, 16]),
    heads=st.sampled_from([(1, 8), (2, 16), (3, 5), (5, 33)]),
    dtype=st.sampled_from(DTYPES),
    source=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    kinds=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference_bit_for_bit(
    impl, num_tokens, block_size, heads, dtype, source, kinds, seed
):
    g = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, num_tokens, *heads, generator=g).to(source)
    num_blocks = 16 // block_size + 2
    slots = torch.randperm(num_blocks * block_size, generator=g)[:num_tokens]
    slots[torch.rand(num_tokens, generator=g) < 0.3] = -1
    scales = [make_scale(kind, (num_blocks, block_size, heads[0]), g) for kind in kinds]
    caches: Any = [poisoned((num_blocks, block_size, *heads), dtype) for _ in range(2)]
    moved: Any = [x.to(place(impl)) for x in (key, value, *caches, slots)]
    theirs = [scale.to(place(impl), copy=True) for scale in scales]
    write_kv(*moved, k_scale=theirs[0], v_scale=theirs[1], impl=impl)
    reference.write_kv(
        key, value, caches[0], caches[1], slots, k_scale=scales[0], v_scale=scales[1]
    )
    for got, expected in zip(moved[2:4], caches, strict=True):
        assert torch.equal(as_bytes(got), as_bytes(expected))
    for got, expected in zip(theirs, scales, strict=True):
        assert torch.equal(got.cpu().view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_read_back_is_within_half_a_step(dtype, kind):
    g = torch.Generator().manual_seed(1)
    key = torch.randn(6, 3, 16, generator=g)
    cache = torch.zeros(2, 4, 3, 16).to(dtype)
    scale = make_scale(kind, (2, 4, 3), g)
    slots = torch.tensor([7, 0, 3, 1, 2, 5])
    write_kv(key, key, cache, cache.clone(), slots, k_scale=scale, v_scale=scale.clone())
    found = dequantise(cache, scale).flatten(0, 1)[slots]
    steps = spread_scale(scale, cache).flatten(0, 1)[slots].unsqueeze(-1)
    limit = LIMITS[dtype] * steps
    held = key.clamp(-limit, limit)
    ulp = steps if dtype == torch.int8 else (held.abs() / 8).clamp_min(steps * 2**-9)
    assert ((found - held).abs() <= 0.5001 * ulp).all()


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_every_number_rounds_to_the_nearest_ties_to_even(impl):
    """Between every two neighbours of e4m3: just below, at and just above the middle."""
    finite = E4M3[E4M3.isfinite()].unique()
    low, high = finite[:-1], finite[1:]
    middle = (low + high) / 2
    inf = torch.tensor(torch.inf)
    x = torch.cat((finite, middle, torch.nextafter(middle, -inf), torch.nextafter(middle, inf)))
    x = torch.cat((x, torch.tensor([464.0, 464.1, 1e30, torch.inf, -torch.inf, torch.nan, 1e-30])))
    x = x[None, None]
    expected = quantise(x, torch.ones(1), torch.float8_e4m3fn).float()
    nearest = finite[(x[0, 0].nan_to_num()[:, None] - finite).abs().argmin(-1)]
    exact = (x[0, 0] - expected[0, 0]).abs() <= (x[0, 0] - nearest).abs()
    assert exact[x[0, 0].isfinite()].all(), "the reference itself"
    one = torch.ones((), device=place(impl))
    cache = poisoned((1, 1, 1, x.shape[2]), torch.float8_e4m3fn).to(place(impl))
    slots = torch.zeros(1, dtype=torch.int64, device=place(impl))
    x = x.to(place(impl))
    write_kv(x, x, cache, cache.clone(), slots, k_scale=one, v_scale=one, impl=impl)
    got = cache.float().cpu()[0]
    assert torch.equal(got.nan_to_num(1234.0), expected.nan_to_num(1234.0))
    assert got.isnan().sum() == 1


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_int8_rounds_ties_to_even_saturates_and_stores_nan_as_zero(impl):
    x = torch.tensor([0.5, 1.5, -0.5, -2.5, 126.5, 127.4, 1e9, -1e9, torch.nan, torch.inf, -0.0])
    expected = [0, 2, 0, -2, 126, 127, 127, -127, 0, 127, 0]
    cache = poisoned((1, 1, 1, len(x)), torch.int8).to(place(impl))
    one = torch.ones((), device=place(impl))
    slots = torch.zeros(1, dtype=torch.int64, device=place(impl))
    x = x[None, None].to(place(impl))
    write_kv(x, x, cache, cache.clone(), slots, k_scale=one, v_scale=one, impl=impl)
    assert cache.flatten().tolist() == expected


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_odd_rows_get_the_scales_that_are_promised(impl, dtype):
    """Zeros, a NaN, infinities, subnormals: one token each, 20 elements so a tail is masked."""
    x = torch.zeros(5, 1, 20)
    x[1, 0, [3, 19]] = torch.tensor([torch.nan, 2.0])
    x[2, 0, [0, 17]] = torch.tensor([torch.inf, -torch.inf])
    x[3, 0, 19] = 1e-42
    x[4, 0, 18] = -896.0
    scale = torch.full((1, 5, 1), -1.0, device=place(impl))
    other = scale.clone()
    cache = poisoned((1, 5, 1, 20), dtype).to(place(impl))
    slots = torch.arange(5, device=place(impl))
    x = x.to(place(impl))
    write_kv(x, x, cache, cache.clone(), slots, k_scale=scale, v_scale=other, impl=impl)
    found = dequantise(cache, scale).cpu()[0]
    assert torch.equal(other.nan_to_num(5.0), scale.nan_to_num(5.0))
    scale = scale.flatten().cpu()
    assert scale[0] == SMALLEST
    assert not found[0].any()
    assert scale[1].isnan()
    assert found[1].isnan().all(), "a NaN makes its whole head NaN"
    assert scale[2] == torch.finfo(torch.float32).max / LIMITS[dtype]
    assert found[2, 0, 0] > 3e38
    assert found[2, 0, 17] < -3e38
    assert scale[3] == SMALLEST
    assert scale[4] == torch.tensor(896.0) / LIMITS[dtype]
    assert found[4, 0, 18] == pytest.approx(-896.0)
    assert not found[4, 0, :18].any()


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_scales_may_be_views_of_all_layers(impl):
    scales = torch.full((3, 2, 2, 4, 2), torch.nan, device=place(impl))
    cache = torch.zeros(2, 2, 4, 2, 8, device=place(impl)).to(torch.float8_e4m3fn)
    new = torch.randn(2, 2, 8, device=place(impl))
    slots = torch.tensor([6, 1], device=place(impl))
    given = {"k_scale": scales[1, 0], "v_scale": scales[1, 1]}
    write_kv(new, 2 * new, cache[0], cache[1], slots, **given, impl=impl)
    assert (~scales.isnan()).sum() == 2 * 2 * 2
    expected = token_scale(new, torch.float8_e4m3fn)
    assert torch.equal(scales[1, 0].flatten(0, 1)[slots], expected)
    assert torch.equal(scales[1, 1].flatten(0, 1)[slots], 2 * expected)


@pytest.mark.parametrize("impl", [i for i in ("reference", *IMPLS) if place(i) == "cpu"])
@pytest.mark.parametrize("bad", [0.0, -1.0, torch.nan, torch.inf, 1e-40])
def test_a_scale_that_cannot_divide_is_refused_before_anything_is_written(impl, bad):
    caches: Any = [poisoned((2, 4, 2, 8), torch.int8) for _ in range(2)]
    new = torch.zeros(2, 2, 8)
    good, broken = torch.ones(2), torch.tensor([1.0, bad])
    slots = torch.tensor([0, 5])
    for k_scale, v_scale in ((good, broken), (broken, good)):
        with pytest.raises(ValueError, match="k_scale, v_scale: expected finite numbers"):
            write_kv(
                new, new, caches[0], caches[1], slots, k_scale=k_scale, v_scale=v_scale, impl=impl
            )
    assert all((as_bytes(c) == 0x7F).all() for c in caches)
    slots = torch.tensor([-1, -1])  # read none
    write_kv(new, new, caches[0], caches[1], slots, k_scale=good, v_scale=broken, impl=impl)


@pytest.mark.parametrize("impl", [i for i in ("reference", *IMPLS) if place(i) == "cpu"])
def test_a_slot_beyond_the_cache_is_refused_before_anything_is_written(impl):
    caches: Any = [poisoned((2, 4, 1, 8), torch.int8) for _ in range(2)]
    scales = torch.full((2, 2, 4, 1), torch.nan)
    new = torch.zeros(2, 1, 8)
    for slots in torch.tensor([[0, 8], [0, 1 << 40], [0, -2]]):
        with pytest.raises(ValueError, match="slot_mapping: expected slots from 0 to 7"):
            write_kv(
                new,
                new,
                caches[0],
                caches[1],
                slots,
                k_scale=scales[0],
                v_scale=scales[1],
                impl=impl,
            )
    assert all((as_bytes(c) == 0x7F).all() for c in caches)
    assert scales.isnan().all()


def test_the_kernel_itself_never_writes_outside_the_cache():
    from blocks.kv._quantised import write_triton

    where = place("triton")
    memory = poisoned((2, 4, 4, 1, 8), torch.int8).to(where)
    scales = torch.full((2, 4, 4, 1), torch.nan, device=where)
    new = torch.zeros(3, 1, 8, device=where)
    slots = torch.tensor([8, -2, 7], device=where)
    write_triton(
        (new, new), (memory[0, 1:3], memory[1, 1:3]), (scales[0, 1:3], scales[1, 1:3]), slots
    )
    assert (as_bytes(memory)[:, [0, 3]] == 0x7F).all()
    assert (as_bytes(memory)[:, 1:3] == 0x7F).sum() == 2 * 7 * 8
    assert scales.isnan().sum() == 2 * 15


@pytest.mark.parametrize(
    ("shape", "kind"),
    [((), "tensor"), ((1,), "tensor"), ((3,), "head"), ((2, 3), "block"), ((2, 4, 3), "token")],
)
def test_the_shape_says_the_kind(shape, kind):
    cache = torch.zeros(2, 4, 3, 8)
    scale = torch.rand(shape)
    assert scale_kind("k_scale", scale, cache) == kind
    spread = spread_scale(scale, cache)
    assert spread.shape == (2, 4, 3)
    assert spread.untyped_storage().data_ptr() == scale.untyped_storage().data_ptr()
    at = {"tensor": (), "head": (2,), "block": (1, 2), "token": (1, 3, 2)}[kind]
    assert spread[1, 3, 2] == (scale.flatten()[0] if kind == "tensor" else scale[at])


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"k_scale": None}, ValueError, "k_scale: expected a scale with a cache of torch.int8"),
        ({"v_scale": torch.ones(3)}, ValueError, r"v_scale shape: expected \[2\]"),
        ({"v_scale": torch.ones(2, 3)}, ValueError, r"v_scale shape: expected \[2, 2\]"),
        ({"v_scale": torch.ones(2, 4, 2, 1)}, ValueError, "v_scale shape"),
        ({"k_scale": torch.ones((), device="meta")}, ValueError, "k_scale: expected a tensor on"),
        ({"key_cache": torch.zeros(2, 4, 2, 8)}, TypeError, "value_cache dtype"),
    ],
)
def test_misuse_is_refused(change, error, says):
    caches = {name: torch.zeros(2, 4, 2, 8).to(torch.int8) for name in ("key_cache", "value_cache")}
    scales = {"k_scale": torch.ones(()), "v_scale": torch.ones(2)}
    arguments = {"key": torch.zeros(1, 2, 8), "value": torch.zeros(1, 2, 8), **caches, **scales}
    with pytest.raises(error, match=says):
        write_kv(slot_mapping=torch.tensor([0]), **(arguments | change))


def test_int8_needs_both_scales():
    caches = torch.zeros(2, 2, 4, 1, 8, dtype=torch.int8)
    new, slots = torch.zeros(1, 1, 8), torch.tensor([0])
    with pytest.raises(ValueError, match=r"k_scale: expected a scale with a cache of torch.int8"):
        write_kv(new, new, caches[0], caches[1], slots)


def test_a_plain_cache_takes_no_scale():
    caches = torch.zeros(2, 2, 4, 1, 8)
    new, slots = torch.zeros(1, 1, 8), torch.tensor([0])
    with pytest.raises(ValueError, match=r"k_scale: expected None with a cache of torch.float32"):
        write_kv(new, new, caches[0], caches[1], slots, k_scale=torch.ones(()))


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
@pytest.mark.parametrize("given", [(), ("k_scale",), ("v_scale",)])
def test_fp8_without_a_scale_has_the_scale_one(impl, given):
    """As attention reads it; 500 saturates."""
    x = torch.tensor([0.3, -500.0, 17.0, torch.nan]).repeat(2, 1, 2).to(place(impl))
    slots = torch.tensor([3, 0], device=place(impl))
    caches = [poisoned((1, 4, 1, 8), torch.float8_e4m3fn).to(place(impl)) for _ in range(4)]
    half = torch.full((), 0.5, device=place(impl))
    scales = dict.fromkeys(("k_scale", "v_scale"), torch.ones((), device=place(impl)))
    some = dict.fromkeys(given, half)
    write_kv(x, x, caches[0], caches[1], slots, impl=impl, **some)
    write_kv(x, x, caches[2], caches[3], slots, impl=impl, **{**scales, **some})
    for got, expected in zip(caches[:2], caches[2:], strict=True):
        assert torch.equal(as_bytes(got), as_bytes(expected))
    assert caches[0 if given != ("k_scale",) else 1][0, 3, 0, 1].float() == -448.0


def test_work_counts_codes_and_scales():
    work = write_kv_work(3, 2, 8, itemsize=2, cache_itemsize=1, token_scales=True)
    assert work.bytes == 3 * (2 * 2 * (8 * 3 + 4) + 8)
