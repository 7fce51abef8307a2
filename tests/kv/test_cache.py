"""KVCache: sizes from a budget, explained; views of one allocation; block copies in all layers."""

from typing import Any

import pytest
import torch

from blocks.kv import KVCache, bytes_per_token, write_kv
from blocks.kv.scales import dequantise

SIZES: dict[str, Any] = {
    "num_layers": 3,
    "block_size": 4,
    "num_kv_heads": 2,
    "head_dim": 8,
    "dtype": torch.float16,
}
TOKEN_BYTES = 2 * 3 * 2 * 8 * 2
BLOCK_BYTES = 4 * TOKEN_BYTES


def sizes(**changes: Any) -> dict[str, Any]:
    return {**SIZES, **changes}


@pytest.mark.parametrize("spare", [0, 1, BLOCK_BYTES - 1])
def test_as_many_blocks_as_the_budget_holds(spare):
    cache = KVCache.from_budget(5 * BLOCK_BYTES + spare, **SIZES)
    assert cache.num_blocks == 5
    assert cache.num_tokens == 4 * 4
    assert cache.storage.nbytes == 5 * BLOCK_BYTES
    assert f"{spare} bytes unused" in cache.explain()


def test_explain_names_every_number():
    text = KVCache.from_budget(5 * BLOCK_BYTES, **SIZES).explain()
    assert text.startswith("16 tokens fit: 4 blocks x 4 tokens")
    assert f"one token takes {TOKEN_BYTES} bytes" in text
    assert "2 x 3 layers x 2 heads x 8 x 2 bytes (float16)" in text


def test_explain_without_a_budget():
    assert f"takes {7 * BLOCK_BYTES} bytes" in KVCache(7, **SIZES).explain()


@pytest.mark.parametrize("budget", [2 * BLOCK_BYTES - 1, 0, -5])
def test_a_budget_too_small_for_one_block_says_the_numbers(budget):
    with pytest.raises(ValueError, match="cache_bytes") as caught:
        KVCache.from_budget(budget, **SIZES)
    for part in (f"at least {2 * BLOCK_BYTES}", f"got {budget}", "raise the budget"):
        assert part in str(caught.value)


@pytest.mark.parametrize("name", ["num_layers", "block_size", "num_kv_heads", "head_dim"])
def test_sizes_must_be_positive(name):
    for build in (lambda **k: KVCache(4, **k), lambda **k: KVCache.from_budget(1 << 20, **k)):
        with pytest.raises(ValueError, match=f"{name}: expected a positive whole number, got 0"):
            build(**sizes(**{name: 0}))


def test_a_dtype_that_cannot_be_written_is_refused_at_once():
    with pytest.raises(TypeError, match=r"dtype: expected one of .*, got torch.int32"):
        KVCache(4, **sizes(dtype=torch.int32))
    with pytest.raises(TypeError, match=r"dtype: expected one of .*, got torch.int32"):
        KVCache.from_budget(10, **sizes(dtype=torch.int32))  # before the budget is looked at


def test_a_budget_beyond_the_machine_says_so():
    with pytest.raises(MemoryError, match=r"expected 65472.0 TiB of free memory on cpu.*lower the"):
        KVCache.from_budget(1 << 56, **sizes(block_size=1 << 40))


def test_the_null_block_alone_is_no_cache():
    with pytest.raises(ValueError, match="num_blocks: expected a whole number of at least 2"):
        KVCache(1, **SIZES)


def test_layers_are_disjoint_views_of_one_allocation():
    cache = KVCache(4, **SIZES)
    assert cache.key(0).shape == cache.value(2).shape == (4, 4, 2, 8)
    for number, plane in enumerate(
        plane for layer in range(3) for plane in (cache.key(layer), cache.value(layer))
    ):
        plane.fill_(number)
        assert plane.is_contiguous()
    values = cache.storage.flatten(2).unique(dim=-1).flatten()
    assert values.tolist() == [0, 1, 2, 3, 4, 5]


def test_blocks_are_copied_in_all_layers_in_order():
    cache = KVCache(4, **SIZES)
    cache.storage.copy_(torch.arange(4.0)[:, None, None, None].expand_as(cache.storage))
    cache.copy_blocks([(1, 2), (2, 3), (0, 1)])
    assert cache.storage[:, :, :, 0, 0, 0].unique(dim=1).squeeze(1).tolist() == [[0, 0, 1, 1]] * 3
    cache.copy_blocks([])


def test_opt_13b_takes_800_kib_a_token():
    assert bytes_per_token(40, 40, 128, torch.float16) == 800 * 1024


@pytest.mark.parametrize(
    ("kind", "token_bytes", "block_bytes", "shared_bytes"),
    [
        ("tensor", 2 * 3 * 2 * 8, 0, 2 * 3 * 4),
        ("head", 2 * 3 * 2 * 8, 0, 2 * 3 * 2 * 4),
        ("block", 2 * 3 * 2 * 8, 2 * 3 * 2 * 4, 0),
        ("token", 2 * 3 * 2 * (8 + 4), 0, 0),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_scales_are_counted_in_the_budget(dtype, kind, token_bytes, block_bytes, shared_bytes):
    block = 4 * token_bytes + block_bytes
    for spare in (0, block - 1):
        cache: Any = KVCache.from_budget(
            5 * block + shared_bytes + spare, **sizes(dtype=dtype, scales=kind)
        )
        assert cache.num_blocks == 5
        assert cache.storage.nbytes + cache.scales.nbytes == 5 * block + shared_bytes
        text = cache.explain()
        assert f"{spare} bytes unused" in text
        assert f"one token takes {token_bytes} bytes" in text
        assert ("scale of 4 bytes each" if kind == "token" else f"one scale per {kind}") in text
    with pytest.raises(ValueError, match=f"at least {2 * block + shared_bytes} "):
        KVCache.from_budget(2 * block + shared_bytes - 1, **sizes(dtype=dtype, scales=kind))


def test_twice_the_tokens_fit_but_for_the_scales():
    wide = KVCache.from_budget(1 << 20, **sizes(head_dim=128, dtype=torch.bfloat16))
    narrow = KVCache.from_budget(1 << 20, **sizes(head_dim=128, dtype=torch.int8))
    assert narrow.scale_kind == "token"
    assert narrow.num_tokens / wide.num_tokens == pytest.approx(256 / 132, rel=0.02)


def test_a_plain_cache_has_no_scales_and_takes_none():
    cache: Any = KVCache(4, **SIZES)
    assert cache.key_scale(0) is cache.value_scale(2) is cache.scales is None
    with pytest.raises(ValueError, match=r"scales: expected None with a cache of torch.float16"):
        KVCache(4, **sizes(scales="head"))
    with pytest.raises(ValueError, match="scales: expected one of"):
        _undecorated(KVCache.__init__)(cache, 4, **sizes(dtype=torch.int8, scales="row"))


@pytest.mark.parametrize("kind", ["tensor", "head", "block", "token"])
def test_copied_blocks_mean_the_same(kind):
    """A block written, copied, swapped out and in again reads the same everywhere."""
    cache: Any = KVCache(4, **sizes(dtype=torch.int8, scales=kind))
    host: Any = KVCache(3, **sizes(dtype=torch.int8, scales=kind))
    new, slots = torch.randn(4, 2, 8), torch.arange(4, 8)
    for layer in range(3):
        for plane in (cache.key_scale(layer), cache.value_scale(layer)):
            if kind == "block":
                plane[1] = 0.03
            elif kind != "token":
                plane.fill_(0.03)
        caches = (cache.key(layer), cache.value(layer))
        given: dict[str, Any] = {
            "k_scale": cache.key_scale(layer),
            "v_scale": cache.value_scale(layer),
        }
        write_kv((layer + 1) * new, -new, *caches, slots, **given)
    if kind in ("tensor", "head"):
        host.scales.copy_(cache.scales)
    cache.copy_blocks([(1, 2)])
    cache.swap_blocks(host, [(2, 1)])
    host.swap_blocks(cache, [(1, 3)])
    for layer in range(3):
        for pages, scale in (
            (cache.key(layer), cache.key_scale(layer)),
            (cache.value(layer), cache.value_scale(layer)),
        ):
            found = dequantise(pages, scale)
            assert found[1].abs().sum() > 0
            assert torch.equal(found[2], found[1])
            assert torch.equal(found[3], found[1])


def test_swapping_needs_caches_alike():
    cache: Any = KVCache(4, **sizes(dtype=torch.int8, scales="head"))
    with pytest.raises(ValueError, match="scales: expected head in both caches, got token"):
        cache.swap_blocks(KVCache(4, **sizes(dtype=torch.int8)), [(1, 1)])
    other: Any = KVCache(4, **sizes(dtype=torch.int8, scales="head"))
    other.scales.mul_(2)
    with pytest.raises(ValueError, match="scales: expected the same in both caches"):
        cache.swap_blocks(other, [(1, 1)])


def _undecorated(function):
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
