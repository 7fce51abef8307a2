"""BlockPool by example: order of reuse, lazy eviction, errors (histories: test_machines.py)."""

import pytest

from blocks.kv import NULL_BLOCK, BlockPool, OutOfBlocks


def test_the_null_block_is_never_handed_out():
    pool = BlockPool(4)
    assert NULL_BLOCK not in pool.allocate(3)
    with pytest.raises(
        OutOfBlocks, match=r"at most 0 blocks \(free now, of 3\), got a request for 1"
    ):
        pool.allocate(1)


def test_all_or_nothing():
    pool = BlockPool(4)
    pool.allocate(1)
    with pytest.raises(OutOfBlocks):
        pool.allocate(3)
    assert pool.num_free == 2
    pool.check_invariants()


def test_empty_blocks_are_reused_first_and_cached_ones_least_recently_used_first():
    pool = BlockPool(7)
    a, b, c, d, e, f = pool.allocate(6)
    pool.mark_findable([a, b, c, d])
    pool.release([a, b])
    pool.release([e])
    pool.release([c, d])
    pool.release([f])
    assert pool.free_order() == [f, e, b, a, d, c]


def test_eviction_is_told_only_when_a_block_is_handed_out_again():
    evicted = []
    pool = BlockPool(3, on_evict=evicted.append)
    a, b = pool.allocate(2)
    pool.mark_findable([a])
    pool.release([a, b])
    assert evicted == []
    assert pool.is_findable(a)
    assert pool.allocate(2) == [b, a]
    assert evicted == [a]
    assert not pool.is_findable(a)


def test_a_hit_leaves_from_the_middle_of_the_free_list():
    pool = BlockPool(5)
    blocks = pool.allocate(4)
    pool.mark_findable(blocks)
    pool.release(blocks)
    pool.retain([blocks[1]])
    assert pool.free_order() == [blocks[3], blocks[2], blocks[0]]
    pool.check_invariants()


def test_a_forgotten_free_block_is_reused_next():
    pool = BlockPool(4)
    blocks = pool.allocate(3)
    pool.mark_findable(blocks)
    pool.release(blocks)
    pool.forget(blocks[0])
    assert pool.free_order()[0] == blocks[0]
    assert pool.num_evictable == 2


def test_double_free_is_refused_and_changes_nothing():
    pool = BlockPool(4)
    a, b = pool.allocate(2)
    pool.release([a])
    for bad in ([a], [b, b], [b, a]):
        with pytest.raises(ValueError, match="was it released twice"):
            pool.release(bad)
    assert pool.ref_count(b) == 1
    pool.check_invariants()


@pytest.mark.parametrize("bad", [-1, NULL_BLOCK, 4, 1 << 40])
def test_unknown_ids_are_refused(bad):
    pool = BlockPool(4)
    owned = pool.allocate(2)
    for operation in (pool.ref_count, pool.is_findable, pool.forget):
        with pytest.raises(ValueError, match="block id: expected 1 to 3, got"):
            operation(bad)
    for operation in (pool.retain, pool.release, pool.mark_findable):
        with pytest.raises(ValueError, match="block id: expected 1 to 3, got"):
            operation([owned[0], bad])
    assert pool.ref_count(owned[0]) == 1


def test_a_pool_needs_a_block_to_give():
    with pytest.raises(
        ValueError, match="num_blocks: expected a whole number of at least 2, got 1"
    ):
        BlockPool(1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda pool: pool._ref_counts.__setitem__(2, 0),
        lambda pool: pool._ref_counts.__setitem__(0, 1),
        lambda pool: pool._ref_counts.__setitem__(4, 1),
        lambda pool: pool._ref_counts.__setitem__(1, -1),
        lambda pool: pool._next.__setitem__(3, 3),
        lambda pool: pool._prev.__setitem__(4, 0),
        lambda pool: pool._findable.__setitem__(0, 1),
        lambda pool: pool._findable.__setitem__(3, 1),
        lambda pool: setattr(pool, "num_free", 5),
        lambda pool: setattr(pool, "num_evictable", 1),
    ],
)
def test_check_invariants_sees_damage(damage):
    pool = BlockPool(6)
    pool.allocate(2)
    pool.check_invariants()
    damage(pool)
    with pytest.raises(AssertionError):
        pool.check_invariants()
