"""copy_blocks: any list of copies gives what one copy after the other gives."""

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.kv import copy_blocks, copy_blocks_work, reference, swap_blocks
from blocks.kv.copy import _check_pairs
from tests.kv.test_write import place

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8]
PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8)


def random_planes(num_blocks, dtype, block, scales, seed=0) -> tuple[Any, Any]:
    """Three planes and, where wanted, as many of scales."""
    g = torch.Generator().manual_seed(seed)
    planes = torch.randint(-100, 100, (3, num_blocks, *block), generator=g).float().to(dtype)
    beside = None if scales is None else torch.randn(3, num_blocks, *scales, generator=g)
    return planes, beside


def same_bytes(actual: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    if actual is None or expected is None:
        return actual is expected
    return torch.equal(actual.cpu().view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("impl", ["torch", "triton"])
@given(
    pairs=PAIRS,
    dtype=st.sampled_from(DTYPES),
    block=st.sampled_from([(1, 1, 1), (4, 2, 8), (16, 3, 80)]),  # the last needs two tiles
    scales=st.sampled_from([None, (3,), (1000, 3)]),  # none, per block, per token in two tiles
)
def test_equals_one_copy_after_the_other(impl, pairs, dtype, block, scales):
    planes, beside = random_planes(6, dtype, block, scales)
    expected, expected_beside = planes.clone(), None if beside is None else beside.clone()
    reference.copy_blocks(expected, pairs, scales=expected_beside)
    planes = planes.to(place(impl))
    beside = None if beside is None else beside.to(place(impl))
    copy_blocks(planes, pairs, scales=beside, impl=impl)
    assert same_bytes(planes, expected)
    assert same_bytes(beside, expected_beside)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@given(
    pairs=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=4),
    dtype=st.sampled_from(DTYPES),
    scales=st.sampled_from([None, (3,), (4, 2)]),
)
def test_swapping_copies_into_another_cache(impl, pairs, dtype, scales):
    pairs = list({target: (source, target) for source, target in pairs}.values())
    source, source_scales = random_planes(6, dtype, (4, 2, 8), scales)
    target, target_scales = random_planes(4, dtype, (4, 2, 8), scales, seed=1)
    expected: Any = [None if x is None else x.clone() for x in (target, target_scales)]
    for from_block, to_block in pairs:
        expected[0][:, to_block] = source[:, from_block]
        if scales is not None:
            expected[1][:, to_block] = source_scales[:, from_block]
    moved: Any = [
        None if x is None else x.to(place(impl))
        for x in (source, target, source_scales, target_scales)
    ]
    given: Any = {"source_scales": moved[2], "target_scales": moved[3]}
    swap_blocks(moved[0], moved[1], pairs, **given, impl=impl)
    assert same_bytes(moved[1], expected[0])
    assert same_bytes(moved[3], expected[1])
    given: Any = {"source_scales": source_scales, "target_scales": target_scales}
    reference.swap_blocks(source, target, pairs, **given)
    assert same_bytes(target, expected[0])


@pytest.mark.parametrize("impl", ["reference", "torch", "triton"])
@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"pairs": [(0, 0), (6, 1)]}, ValueError, "block copy: expected block ids from 0 to 5"),
        ({"pairs": [(0, 0), (0, 4)]}, ValueError, "from 0 to 3"),
        ({"pairs": [(0, 1), (2, 1)]}, ValueError, "pairs: expected every target block once"),
        ({"source_scales": torch.zeros(3, 6, 2)}, ValueError, "scales: expected both or neither"),
        ({"target": torch.zeros(3, 4, 8).half()}, TypeError, "target dtype"),
    ],
)
def test_a_swap_that_does_not_fit_is_refused_before_anything_is_copied(impl, change, error, says):
    target = torch.full((3, 4, 8), -1.0)
    given: dict[str, Any] = {
        "source": torch.zeros(3, 6, 8),
        "target": target,
        "pairs": [(0, 0)],
    } | change
    with pytest.raises(error, match=says):
        swap_blocks(given.pop("source"), given.pop("target"), given.pop("pairs"), **given)
    assert (target == -1).all()


@pytest.mark.parametrize("pairs", [[(0, 0), (0.0, 1.0)], [(0, 0), (0, 1, 2)], [3], ["ab"]])
def test_pairs_that_are_none_are_refused_before_anything_is_copied(pairs, monkeypatch):
    monkeypatch.setattr("blocks.kv.copy._check_pairs", inspect.unwrap(_check_pairs))
    swap = inspect.unwrap(swap_blocks)
    source, target = torch.zeros(3, 6, 8), torch.full((3, 4, 8), -1.0)
    with pytest.raises(ValueError, match=r"pairs: expected \(source, target\) block ids"):
        swap(source, target, pairs)
    with pytest.raises(TypeError, match="pairs: expected a list"):
        swap(source, target, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="target: expected other memory than source"):
        swap(target, target, [(0, 1)])
    assert (target == -1).all()


def test_a_view_at_an_odd_place_is_copied_too():
    """One bf16 into its memory: four-byte words would not be aligned."""
    memory = torch.arange(2 * 2 * 4 + 1).bfloat16()
    planes = memory[1:].view(2, 2, 4)
    copy_blocks(planes, [(0, 1)], impl="torch")
    assert torch.equal(planes[:, 1], planes[:, 0])
    assert memory[0] == 0


@pytest.mark.parametrize("impl", ["reference", "torch", "triton"])
def test_an_unknown_block_is_refused_before_anything_is_copied(impl):
    planes = torch.randn(2, 4, 8, device=place(impl))
    before = planes.clone()
    for bad in [(4, 0), (0, 4), (-1, 0), (0, -1)]:
        with pytest.raises(ValueError, match="block copy: expected block ids from 0 to 3"):
            copy_blocks(planes, [(0, 1), bad], impl=impl)
    assert torch.equal(planes, before)


def test_scattered_planes_are_refused():
    with pytest.raises(ValueError, match="planes: expected a contiguous tensor"):
        copy_blocks(torch.zeros(4, 2, 8).transpose(0, 1), [(0, 1)])


def test_work_counts_a_read_and_a_write():
    assert copy_blocks_work(num_pairs=3, num_planes=4, block_bytes=100).bytes == 2400


def test_planes_without_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \[num_planes, num_blocks, \.\.\.\], got \[3\]"):
        inspect.unwrap(copy_blocks)(torch.zeros(3), [(0, 1)])  # past the type checks
