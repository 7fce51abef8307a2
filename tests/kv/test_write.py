"""write_kv: every implementation against the reference, and what must stay untouched."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.kv import reference, write_kv, write_kv_work

IMPLS = ("torch", "native", "triton")


def place(impl: str) -> str:
    """Where an implementation is tested: Triton on the accelerator if there is one."""
    return "cuda" if impl == "triton" and torch.cuda.is_available() else "cpu"


def write(impl, key, value, key_cache, value_cache, slots) -> None:
    """`write_kv` where the implementation runs; the caches are CPU tensors before and after."""
    moved = [x.to(place(impl)) for x in (key, value, key_cache, value_cache, slots)]
    write_kv(*moved, impl=impl)
    key_cache.copy_(moved[2])
    value_cache.copy_(moved[3])


def cache(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values full of NaN, so that a write in the wrong place shows."""
    return torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)


def same(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    return torch.equal(actual.nan_to_num(12345.0), expected.nan_to_num(12345.0))


@pytest.mark.parametrize("impl", IMPLS)
@given(
    num_tokens=st.integers(0, 20),
    block_size=st.sampled_from([1, 4, 16]),
    heads=st.sampled_from([(1, 8), (2, 16), (3, 5)]),
    dtypes=st.sampled_from(
        [
            (torch.float32, torch.float32),
            (torch.bfloat16, torch.bfloat16),
            (torch.float16, torch.float16),
            (torch.float32, torch.float16),
        ]
    ),
    seed=st.integers(0, 1000),
)
def test_equals_the_reference_bit_for_bit(impl, num_tokens, block_size, heads, dtypes, seed):
    g = torch.Generator().manual_seed(seed)
    key, value = torch.randn(2, num_tokens, *heads, generator=g).to(dtypes[0])
    num_blocks = 24 // block_size + 2
    slots = torch.randperm(num_blocks * block_size, generator=g)[:num_tokens]
    slots[torch.rand(num_tokens, generator=g) < 0.3] = -1
    key_cache, value_cache = cache((num_blocks, block_size, *heads), dtypes[1])
    write(impl, key, value, key_cache, value_cache, slots)
    expected_key, expected_value = cache((num_blocks, block_size, *heads), dtypes[1])
    reference.write_kv(key, value, expected_key, expected_value, slots)
    assert same(key_cache, expected_key)
    assert same(value_cache, expected_value)


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_reads_views_and_writes_views(impl):
    """Keys and values as slices of a fused projection, the cache as one layer of many."""
    fused = torch.randn(5, 3 * 2 * 8)
    key, value = (x.unflatten(1, (2, 8)) for x in fused.split(16, dim=1)[1:])
    layers = torch.full((3, 2, 4, 4, 2, 8), torch.nan)
    write(impl, key, value, layers[1, 0], layers[1, 1], torch.tensor([3, -1, 15, 4, 0]))
    written = ~layers.isnan()
    assert not written[[0, 2]].any()
    assert written[1].sum() == 2 * 4 * 16
    assert torch.equal(layers[1, 0].flatten(0, 1)[[3, 15, 4, 0]], key[[0, 2, 3, 4]])
    assert torch.equal(layers[1, 1].flatten(0, 1)[[3, 15, 4, 0]], value[[0, 2, 3, 4]])


@pytest.mark.parametrize("impl", [i for i in ("reference", *IMPLS) if place(i) == "cpu"])
def test_a_slot_beyond_the_cache_is_refused_before_anything_is_written(impl):
    key_cache, value_cache = cache((2, 4, 1, 8), torch.float32)
    new = torch.zeros(2, 1, 8)
    for bad in (8, 1 << 40, -2):
        with pytest.raises(ValueError, match="slot_mapping: expected slots from 0 to 7"):
            write_kv(new, new, key_cache, value_cache, torch.tensor([0, bad]), impl=impl)
    assert key_cache.isnan().all()
    assert value_cache.isnan().all()


def test_the_kernel_itself_never_writes_outside_the_cache(monkeypatch):
    """On an accelerator the host does not look at slots; the kernel's mask is what protects."""
    from blocks.kv.write import _write_triton

    where = place("triton")
    memory = torch.full((2, 4, 4, 1, 8), torch.nan, device=where)
    new = torch.zeros(3, 1, 8, device=where)
    slots = torch.tensor([8, -2, 7], device=where)
    monkeypatch.setattr("blocks.kv.write.check_slots", lambda slots, key_cache: None)
    _write_triton(new, new, memory[0, 1:3], memory[1, 1:3], slots)  # the middle two blocks
    assert memory[:, [0, 3]].isnan().all()
    assert memory[:, 1:3].isnan().sum() == 2 * 7 * 8


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"slots": torch.zeros(2, dtype=torch.int32)}, TypeError, "slot_mapping dtype"),
        ({"slots": torch.zeros(3, dtype=torch.int64)}, ValueError, "key shape"),
        ({"value": torch.zeros(2, 2, 8)}, ValueError, "value shape"),
        ({"value_cache": torch.zeros(3, 4, 1, 8)}, ValueError, "value_cache shape"),
        ({"value_cache": torch.zeros(2, 4, 1, 8).half()}, TypeError, "value_cache dtype"),
        ({"key": torch.zeros(2, 1, 8, device="meta")}, ValueError, "devices"),
    ],
)
def test_misuse_is_refused(change, error, says):
    arguments = {
        "key": torch.zeros(2, 1, 8),
        "value": torch.zeros(2, 1, 8),
        "key_cache": torch.zeros(2, 4, 1, 8),
        "value_cache": torch.zeros(2, 4, 1, 8),
        "slots": torch.tensor([0, 1]),
    }
    # The function under the shape annotations, which refuse the same things in tests.
    with pytest.raises(error, match=says):
        _undecorated(write_kv)(*(arguments | change).values())


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_caches_without_contiguous_blocks(impl):
    """Keys and values of a block side by side: strides differ from the usual, and are honoured."""
    memory = torch.full((3, 2, 4, 1, 8), torch.nan)
    key, value = torch.randn(2, 3, 1, 8)
    write(impl, key, value, memory[:, 0], memory[:, 1], torch.tensor([11, 0, 6]))
    assert torch.equal(memory[[2, 0, 1], 0, [3, 0, 2]], key)
    assert torch.equal(memory[[2, 0, 1], 1, [3, 0, 2]], value)
    assert memory.isnan().sum() == memory.numel() - 2 * 3 * 8


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_transposed_caches_are_refused(impl):
    key_cache, value_cache = cache((2, 4, 8, 3), torch.float32)
    new = torch.zeros(1, 3, 8)
    with pytest.raises(ValueError, match="key_cache and value_cache: expected equal strides"):
        write(impl, new, new, key_cache.mT, value_cache.mT, torch.tensor([0]))


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_keys_with_heads_apart(impl):
    key, value = torch.randn(2, 8, 3, 5).transpose(1, 3)  # [num_tokens=5, num_kv_heads=3, 8]
    key_cache, value_cache = cache((2, 4, 3, 8), torch.float32)
    write(impl, key, value, key_cache, value_cache, torch.tensor([7, 6, 5, 4, 3]))
    assert torch.equal(key_cache.flatten(0, 1)[[7, 6, 5, 4, 3]], key)
    assert torch.equal(value_cache.flatten(0, 1)[[7, 6, 5, 4, 3]], value)


@pytest.mark.parametrize("impl", ["reference", *IMPLS])
def test_no_gradient_flows_through_the_cache(impl):
    key_cache, value_cache = torch.zeros(2, 2, 4, 1, 8, device=place(impl))
    new = torch.zeros(1, 1, 8, device=place(impl), requires_grad=True)
    slots = torch.tensor([0], device=place(impl))
    write_kv(new, new, key_cache, value_cache, slots, impl=impl)
    assert not key_cache.requires_grad


def test_an_unknown_implementation_is_refused():
    key_cache, value_cache = cache((2, 4, 1, 8), torch.float32)
    new = torch.zeros(1, 1, 8)
    with pytest.raises(ValueError, match="impl: expected one of"):
        write_kv(new, new, key_cache, value_cache, torch.tensor([0]), impl="cuda")


def test_work_counts_each_byte_once():
    assert write_kv_work(num_tokens=3, num_kv_heads=2, head_dim=8, itemsize=2).bytes == 3 * 136


def _undecorated(function):
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function
