"""BlockTable: slots of any range of positions, one position after the other."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from blocks.kv import BlockTable


@given(
    block_size=st.integers(1, 5),
    block_ids=st.lists(st.integers(1, 50), max_size=6, unique=True),
    data=st.data(),
)
def test_a_slot_is_block_times_size_plus_offset(block_size, block_ids, data):
    end = block_size * len(block_ids)
    table = BlockTable(block_size, block_ids, end)
    start = data.draw(st.integers(0, end))
    stop = data.draw(st.integers(start, end))
    expected = [
        block_ids[p // block_size] * block_size + p % block_size for p in range(start, stop)
    ]
    assert table.slots(start, stop) == expected


@pytest.mark.parametrize(("start", "stop"), [(0, 9), (8, 9), (-1, 3), (5, 4)])
def test_positions_without_slots_are_refused(start, stop):
    with pytest.raises(ValueError, match=r"positions: expected a range within \[0, 8\), got"):
        BlockTable(4, [3, 1], 6).slots(start, stop)


def test_it_prints_what_it_holds():
    assert repr(BlockTable(4, [3, 1], 6)) == "BlockTable(6 tokens in [3, 1])"
