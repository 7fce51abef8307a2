"""rope_write_kv: the same bits as norm, rotation and write one after the other."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks import ops
from blocks.kv import reference, rope_write_kv, rope_write_kv_work, write_kv
from blocks.kv.scales import dequantise
from tests.kv.test_quantised import as_bytes, make_scale, poisoned
from tests.kv.test_write import place
from tests.numerics import assert_close

IMPLS = ("torch", "native", "triton")
BLOCK_SIZE, NUM_BLOCKS = 4, 6


def inputs(
    num_tokens: int,
    heads: tuple[int, int],
    head_dim: int,
    rotary_dim: int,
    dtype: torch.dtype,
    *,
    normed: bool = True,
    cache_dtype: torch.dtype | None = None,
    scale: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments: views into one fused projection, caches full of NaN, a third of tokens skipped."""
    g = torch.Generator().manual_seed(seed)
    sizes = (heads[0], heads[1], heads[1])
    fused = torch.randn(num_tokens, sum(sizes) * head_dim, generator=g).to(dtype)
    query, key, value = fused.unflatten(1, (-1, head_dim)).split(sizes, dim=1)
    slots = torch.randperm(NUM_BLOCKS * BLOCK_SIZE, generator=g)[:num_tokens]
    slots[torch.rand(num_tokens, generator=g) < 0.3] = -1
    angles = torch.randn(16, rotary_dim // 2, generator=g)
    shape = (NUM_BLOCKS, BLOCK_SIZE, heads[1], head_dim)
    caches = [poisoned((*shape, (cache_dtype or dtype).itemsize), torch.uint8) for _ in range(2)]
    caches = [c.view(cache_dtype or dtype).squeeze(-1) for c in caches]
    found = {
        "query": query,
        "key": key,
        "value": value,
        "positions": torch.randint(16, (num_tokens,), generator=g),
        "cos_sin": torch.cat((angles.cos(), angles.sin()), dim=1),
        "key_cache": caches[0],
        "value_cache": caches[1],
        "slot_mapping": slots,
    }
    if normed:
        found["query_norm"], found["key_norm"] = torch.randn(2, head_dim, generator=g).to(dtype)
    if scale is not None:
        for name in ("k_scale", "v_scale"):
            found[name] = make_scale(scale, (NUM_BLOCKS, BLOCK_SIZE, heads[1]), g)
    return found


def drawn(num_tokens: int, dtype: torch.dtype, heads, dims, quantised, **more) -> dict[str, Any]:
    """`inputs` of what Hypothesis drew."""
    cache_dtype, scale = quantised or (None, None)
    return inputs(
        num_tokens, heads, dims[0], dims[1], dtype, cache_dtype=cache_dtype, scale=scale, **more
    )


def copied(given: dict[str, Any], where: str = "cpu") -> dict[str, Any]:
    """The same arguments in other memory; query, key and value still views into one tensor."""
    found = {
        n: x.to(where, copy=True) if isinstance(x, torch.Tensor) else x for n, x in given.items()
    }
    fused = torch.cat((given["query"], given["key"], given["value"]), dim=1).to(where)
    sizes = [given[n].shape[1] for n in ("query", "key", "value")]
    found["query"], found["key"], found["value"] = fused.split(sizes, dim=1)
    return found


def unfused(given: dict[str, Any], impl: str, **options: Any) -> torch.Tensor:
    """The separate operations of blocks.ops and blocks.kv, in the order a decoder calls them."""
    query, key = given["query"], given["key"]
    ops_impl: Any = impl
    if "query_norm" in given:
        norm = {name: options[name] for name in ("eps", "weight_offset")}
        query = ops.rms_norm(query.contiguous(), given["query_norm"], **norm, impl=ops_impl)
        key = ops.rms_norm(key.contiguous(), given["key_norm"], **norm, impl=ops_impl)
    query, key = ops.apply_rope(
        query, key, given["positions"], given["cos_sin"],
        interleaved=options["interleaved"], impl=ops_impl,
    )  # fmt: skip
    write_kv(
        key, given["value"], given["key_cache"], given["value_cache"], given["slot_mapping"],
        k_scale=given.get("k_scale"), v_scale=given.get("v_scale"), impl=impl,
    )  # fmt: skip
    return query


def assert_same_bits(actual: dict[str, Any], expected: dict[str, Any]) -> None:
    for name in ("key_cache", "value_cache", "k_scale", "v_scale"):
        if name in expected:
            assert torch.equal(as_bytes(actual[name]), as_bytes(expected[name])), name


CASE = st.fixed_dictionaries(
    {
        "heads": st.sampled_from([(4, 2), (3, 1), (9, 9)]),
        "dims": st.sampled_from([(8, 8), (16, 8), (40, 32), (64, 64), (5, 4)]),
        "normed": st.booleans(),
        "quantised": st.sampled_from(
            [
                None,
                (torch.int8, "token"),
                (torch.float8_e4m3fn, "token"),
                (torch.float8_e4m3fn, "head"),
            ]
        ),
        "seed": st.integers(0, 1000),
    }
)
OPTIONS = st.fixed_dictionaries(
    {
        "eps": st.just(1e-5),
        "weight_offset": st.sampled_from([0.0, 1.0]),
        "interleaved": st.booleans(),
    }
)


@pytest.mark.parametrize("impl", ["reference", "native", "triton"])
@settings(max_examples=settings().max_examples // 2)
@given(
    num_tokens=st.sampled_from([0, 1, 3]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    inplace=st.booleans(),
    options=OPTIONS,
    case=CASE,
)
def test_the_same_bits_as_the_separate_operations(impl, num_tokens, dtype, inplace, options, case):
    """Of the same implementation. Triton's norm may add up in another order: see below."""
    if impl == "native" and dtype == torch.float16:
        dtype = torch.float32  # the one the C++ code does not know
    if impl == "triton":
        case["normed"] = False
    given = drawn(num_tokens, dtype, **case)
    ours, theirs = copied(given, place(impl)), copied(given, place(impl))
    before = ours["key"].clone()
    found = rope_write_kv(**ours, **options, inplace=inplace, impl=impl)
    expected = unfused(theirs, impl, **options)
    assert torch.equal(found.view(torch.uint8), expected.contiguous().view(torch.uint8))
    assert_same_bits(ours, theirs)
    assert torch.equal(ours["key"], before), "the key is left as it is"
    if inplace:
        assert found.data_ptr() == ours["query"].data_ptr()
    else:
        assert torch.equal(ours["query"], theirs["query"])


@pytest.mark.parametrize("impl", IMPLS)
@settings(max_examples=settings().max_examples // 2)
@given(
    num_tokens=st.sampled_from([0, 1, 3]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    options=OPTIONS,
    case=CASE,
)
def test_equals_the_reference(impl, num_tokens, dtype, options, case):
    if impl == "native" and dtype == torch.float16:
        dtype = torch.float32
    given = drawn(num_tokens, dtype, **case)
    ours, theirs = copied(given, place(impl)), copied(given)
    found = rope_write_kv(**ours, **options, impl=impl)
    expected = reference.rope_write_kv(**theirs, **options)
    assert_close(found, expected, slack=2.0)
    slots = given["slot_mapping"]
    written = slots[slots >= 0]
    for name, scales in (("key_cache", "k_scale"), ("value_cache", "v_scale")):
        pages = []
        for side in (ours, theirs):
            cache = side[name].cpu()
            pages.append(cache if scales not in given else dequantise(cache, side[scales].cpu()))
        rows = [page.flatten(0, 1) for page in pages]
        if scales not in given:
            assert_close(rows[0][written], rows[1][written], dtype=dtype, slack=2.0)
        else:  # a last bit may tip an element into the next code: an eighth of it, or one in 127
            a, b = (row[written] for row in rows)
            step = b.abs().amax(-1, keepdim=True) if b.numel() else b
            assert ((a - b).abs() <= b.abs() / 8 + step / 100).all()
        untouched = torch.ones(len(rows[0]), dtype=torch.bool)
        untouched[written] = False
        as_given = given[name].flatten(0, 1)[untouched]
        assert torch.equal(
            as_bytes(ours[name].cpu().flatten(0, 1)[untouched].contiguous()), as_bytes(as_given)
        )


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_a_skipped_token_is_turned_and_not_written(impl):
    given = copied(inputs(3, (2, 1), 8, 8, torch.float32), place(impl))
    given["slot_mapping"].fill_(-1)
    found = rope_write_kv(**given, impl=impl)
    assert found.isfinite().all()
    for name in ("key_cache", "value_cache"):
        assert (as_bytes(given[name]) == 0x7F).all()


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_a_cache_of_another_dtype(impl):
    """fp32 activations into a bf16 cache: rounded once more, as the write would."""
    given = inputs(4, (2, 2), 16, 8, torch.float32, cache_dtype=torch.bfloat16)
    if impl == "native":
        with pytest.raises(ValueError, match="impl: expected one of"):
            rope_write_kv(**given, impl=impl)
        return
    ours = copied(given, place(impl))
    rope_write_kv(**ours, impl=impl)
    expected = copied(given)
    reference.rope_write_kv(**expected)
    at = given["slot_mapping"][given["slot_mapping"] >= 0]
    for name in ("key_cache", "value_cache"):
        rows = [x[name].cpu().flatten(0, 1)[at] for x in (ours, expected)]
        assert_close(*rows)


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_fp8_without_scales_has_the_scale_one(impl):
    given = inputs(5, (4, 2), 16, 8, torch.float32, cache_dtype=torch.float8_e4m3fn)
    one = torch.ones((), device=place(impl))
    ours, theirs = copied(given, place(impl)), copied(given, place(impl))
    rope_write_kv(**ours, impl=impl)
    rope_write_kv(**theirs, k_scale=one, v_scale=one, impl=impl)
    assert_same_bits(ours, theirs)


@pytest.mark.filterwarnings("ignore:invalid value encountered")  # by the interpreter's numpy
def test_an_infinite_and_a_nan_element_stay_in_their_head():
    given = inputs(2, (2, 2), 8, 8, torch.float32, scale="token", cache_dtype=torch.int8)
    given["slot_mapping"] = torch.tensor([5, 9])
    given["key"][0, 1, 3] = torch.nan
    given["query"][1, 0, 0] = torch.inf
    for impl in IMPLS:
        ours = copied(given, place(impl))
        found = rope_write_kv(**ours, impl=impl).cpu()
        assert not found[1, 0].isfinite().all()
        assert found[[0, 0, 1], [0, 1, 1]].isfinite().all()
        keys = dequantise(ours["key_cache"], ours["k_scale"]).cpu().flatten(0, 1)
        assert keys[5, 1].isnan().all()
        assert keys[5, 0].isfinite().all()
        assert keys[9].isfinite().all()


@pytest.mark.parametrize("impl", [i for i in ("reference", *IMPLS) if place(i) == "cpu"])
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("slot_mapping", 24, "slot_mapping: expected slots from 0 to 23"),
        ("slot_mapping", -2, "slot_mapping: expected slots from 0 to 23"),
        ("positions", 16, r"positions: expected within \[0, 16\)"),
        ("positions", -1, r"positions: expected within \[0, 16\)"),
        ("k_scale", 0.0, "k_scale, v_scale: expected finite numbers"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(impl, name, value, says):
    given = inputs(3, (2, 1), 8, 8, torch.float32, cache_dtype=torch.int8, scale="head")
    given["slot_mapping"] = torch.tensor([1, 2, 3])
    given[name][-1] = value
    before = given["query"].clone()
    with pytest.raises(ValueError, match=says):
        rope_write_kv(**given, inplace=True, impl=impl)
    assert torch.equal(given["query"], before)
    for cache in ("key_cache", "value_cache"):
        assert (as_bytes(given[cache]) == 0x7F).all()


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"query_norm": None}, ValueError, "query_norm, key_norm: expected both or neither"),
        ({"cos_sin": torch.zeros(16, 7)}, ValueError, "rotary_dim: expected an even number"),
        ({"cos_sin": torch.zeros(16, 10)}, ValueError, "rotary_dim: expected an even number"),
        ({"key_norm": torch.zeros(8).half()}, TypeError, "key_norm dtype"),
        ({"eps": -1.0}, ValueError, "eps: expected a number of at least 0"),
        ({"k_scale": torch.ones(())}, ValueError, "k_scale: expected None"),
        ({"query": torch.zeros(3, 1, 8).expand(3, 2, 8), "inplace": True}, ValueError, "inplace"),
        ({"query": torch.zeros(3, 2, 8, requires_grad=True)}, ValueError, "no gradients"),
    ],
)
def test_misuse_is_refused(change, error, says):
    given = inputs(3, (2, 1), 8, 8, torch.float32)
    with pytest.raises(error, match=says):
        rope_write_kv(**(given | change))


def test_work_counts_every_element_once_each_way():
    work = rope_write_kv_work(3, 4, 2, 8, 6, 2, cache_itemsize=1, token_scales=True)
    assert work.bytes == 3 * (4 * 8 * 4 + 2 * 2 * (8 * 3 + 4) + 6 * 4 + 16)
    assert work.flops == 3 * 6 * (3 * 6 + 4 * 8)
