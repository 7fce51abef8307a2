"""How many splits: enough to fill the device, never so many that they cost more than they bring."""

import itertools

import pytest

from blocks.attention._splits import (
    FIXED_SPLIT,
    MOST_SPLITS,
    ROUNDS,
    choose_num_splits,
    least_split_len,
    num_fixed_splits,
)

PROCESSORS = (8, 80, 108, 132, 304)
PROGRAMS = (1, 2, 4, 8, 16, 31, 32, 33, 64, 100, 131, 132, 133, 256, 500, 1024, 5000)
CAPACITIES = (16, 255, 256, 1024, 2048, 4096, 8192, 32768, 131072)
GRID = list(itertools.product(PROCESSORS, PROGRAMS, CAPACITIES, (1, 4, 8, 64), (1, 2)))


def sizes(rows: int, kv_itemsize: int) -> dict[str, int]:
    return {"rows": rows, "head_dim": 128, "kv_itemsize": kv_itemsize}


def test_the_device_is_filled_wherever_the_context_allows():
    for processors, programs, capacity, rows, itemsize in GRID:
        splits = choose_num_splits(programs, capacity, processors, **sizes(rows, itemsize))
        most = min(capacity // least_split_len(rows, 128, itemsize), MOST_SPLITS)
        assert splits >= 1
        if most >= max(2, ROUNDS * processors // programs):
            assert programs * splits >= 2 * processors, "two waves"
            waves = -(-programs * splits // processors)
            idle = 1 - programs * splits / (waves * processors)
            assert idle <= 0.25, f"{idle:.0%} of the last wave idle"


def test_partial_outputs_stay_a_tenth_of_the_keys_and_values():
    for processors, programs, capacity, rows, itemsize in GRID:
        splits = choose_num_splits(programs, capacity, processors, **sizes(rows, itemsize))
        if splits > 1:
            partial = 2 * splits * rows * (128 + 1) * 4
            assert partial <= 0.1 * 2 * capacity * 128 * itemsize


@pytest.mark.parametrize("processors", PROCESSORS)
def test_more_programs_never_mean_more_splits_and_more_context_never_fewer(processors):
    for programs, capacity in itertools.product(PROGRAMS, CAPACITIES):
        splits = choose_num_splits(programs, capacity, processors)
        assert choose_num_splits(programs + 1, capacity, processors) <= splits
        assert choose_num_splits(programs, capacity + 64, processors) >= splits


def test_there_is_no_cliff():
    """Longest program times waves: no jump above a third as the batch grows by one."""

    def waves_of_work(programs: int) -> float:
        splits = choose_num_splits(programs, 32768, 132)
        return -(-programs * splits // 132) / splits

    times = [waves_of_work(n) for n in range(8, 3000)]
    assert max(b / a for a, b in itertools.pairwise(times)) < 1.34
    ideal = [max(n / 132, 1 / 256) for n in range(8, 3000)]
    assert max(t / i for t, i in zip(times, ideal, strict=True)) < 1.34


def test_fixed_splits_cover_the_capacity():
    for capacity in (0, 1, FIXED_SPLIT - 1, FIXED_SPLIT, FIXED_SPLIT + 1, 131072):
        splits = num_fixed_splits(capacity)
        assert splits * FIXED_SPLIT >= capacity
        assert splits == 1 or (splits - 1) * FIXED_SPLIT < capacity
