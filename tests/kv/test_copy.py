"""copy_blocks: any list of copies gives what one copy after the other gives."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocks.kv import copy_blocks, copy_blocks_work, reference
from tests.kv.test_write import place

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8)


@pytest.mark.parametrize("impl", ["torch", "triton"])
@given(
    pairs=PAIRS,
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    block=st.sampled_from([(1, 1, 1), (4, 2, 8), (16, 3, 80)]),  # the last needs two tiles
)
def test_equals_one_copy_after_the_other(impl, pairs, dtype, block):
    planes = torch.randn(3, 6, *block, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = planes.clone()
    reference.copy_blocks(expected, pairs)
    planes = planes.to(place(impl))
    copy_blocks(planes, pairs, impl=impl)
    assert torch.equal(planes.cpu(), expected)


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
