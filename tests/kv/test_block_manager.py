"""BlockManager: tables, sharing, copy-on-write, prefix hits, and what a refusal leaves behind."""

import pytest

from blocks.kv import BlockManager


def manager(num_usable: int = 8, block_size: int = 4, **options) -> BlockManager:
    return BlockManager(num_usable + 1, block_size, **options)


def tokens(count: int, start: int = 0) -> list[int]:
    return list(range(start, start + count))


def test_a_block_is_taken_only_when_the_one_before_is_full():
    m = manager()
    assert m.allocate(0, tokens(3), 3) == 0
    assert m.append(0, 4)
    assert m.num_free_blocks == 7
    assert m.append(0, 5)
    assert m.num_free_blocks == 6
    assert m.table(0).slots(3, 5) == [1 * 4 + 3, 2 * 4 + 0]


def test_paper_example_seven_token_prompt():
    """Kwon et al., 2023, figure 6: two blocks, the first new token fills the second."""
    m = manager()
    m.allocate(0, tokens(7), 7)
    assert len(m.table(0).block_ids) == 2
    m.append(0, 8)
    assert len(m.table(0).block_ids) == 2
    m.append(0, 9)
    assert len(m.table(0).block_ids) == 3


def test_one_token_is_left_to_compute_when_all_are_cached():
    m = manager()
    m.allocate(0, tokens(8), 8)
    m.commit(0, tokens(8), 8)
    assert m.match_prefix(tokens(8)) == 4
    assert m.match_prefix(tokens(9)) == 8
    assert m.match_prefix(tokens(4)) == 0


def test_match_is_a_pure_look_up():
    m = manager()
    m.allocate(0, tokens(8), 8)
    m.commit(0, tokens(8), 8)
    m.free(0)
    before = (m.num_free_blocks, m.num_query_tokens, m.usage())
    assert m.match_prefix(tokens(9)) == 8
    assert (m.num_free_blocks, m.num_query_tokens, m.usage()) == before


def test_hit_while_the_owner_runs_and_after_it_left():
    m = manager()
    m.allocate(0, tokens(8), 8)
    m.commit(0, tokens(8), 8)
    assert m.allocate(1, tokens(9), 9) == 8
    assert m.table(1).block_ids[:2] == m.table(0).block_ids
    m.free(0)
    m.free(1)
    assert m.allocate(2, tokens(9), 9) == 8
    assert m.num_hit_tokens == 16
    assert m.num_query_tokens == 8 + 9 + 9


def test_the_tail_of_a_prefix_is_evicted_first():
    m = manager(num_usable=4)
    m.allocate(0, tokens(16), 16)
    m.commit(0, tokens(16), 16)
    m.free(0)
    m.allocate(1, tokens(4, start=100), 4)
    assert m.match_prefix(tokens(17)) == 12
    m.append(1, 8)
    assert m.match_prefix(tokens(17)) == 8


def test_namespaces_do_not_share():
    m = manager()
    m.allocate(0, tokens(8), 8, "tenant a")
    m.commit(0, tokens(8), 8)
    assert m.match_prefix(tokens(9)) == 0
    assert m.match_prefix(tokens(9), "tenant b") == 0
    assert m.match_prefix(tokens(9), "tenant a") == 8


def test_a_refused_allocation_leaves_its_cached_blocks_untouched():
    m = manager(num_usable=4)
    m.allocate(0, tokens(8), 8)
    m.commit(0, tokens(8), 8)
    m.free(0)
    m.allocate(1, tokens(4, start=100), 4)
    before = m.usage()
    # Two hits and two new blocks: only one of the three free blocks is not a hit itself.
    assert m.allocate(2, tokens(16), 16) is None
    assert m.usage() == before
    assert m.match_prefix(tokens(9)) == 8
    assert m.allocate(2, tokens(12), 12) == 8


def test_siblings_copy_the_partly_filled_last_block_before_writing():
    m = manager()
    m.allocate(0, tokens(6), 6)
    m.fork(0, 1)
    shared = m.table(0).block_ids.copy()
    assert m.append(1, 7)
    assert m.table(0).block_ids == shared
    assert m.table(1).block_ids[0] == shared[0]
    assert m.take_copies() == [(shared[1], m.table(1).block_ids[1])]
    assert m.append(0, 7)  # the last owner writes in place
    assert m.take_copies() == []
    assert m.table(0).block_ids == shared


def test_full_blocks_are_never_copied():
    m = manager()
    m.allocate(0, tokens(8), 8)
    m.fork(0, 1)
    assert m.append(0, 9)
    assert m.append(1, 9)
    assert m.take_copies() == []


def test_a_copy_that_does_not_fit_changes_nothing():
    m = manager(num_usable=2)
    m.allocate(0, tokens(6), 6)
    m.fork(0, 1)
    before = m.usage()
    assert not m.append(1, 7)
    assert m.usage() == before
    assert m.take_copies() == []


def test_the_copy_for_a_freed_sequence_is_dropped():
    m = manager()
    m.allocate(0, tokens(6), 6)
    m.fork(0, 1)
    m.append(1, 7)
    m.free(1)
    assert m.take_copies() == []


def test_a_failed_step_takes_its_blocks_out_of_the_cache():
    m = manager()
    m.allocate(0, tokens(12), 12)
    m.commit(0, tokens(12), 12)
    m.free(0, num_valid_tokens=7)
    assert m.match_prefix(tokens(12)) == 4


def test_a_sequence_without_appends_inside_its_block_still_commits():
    m = manager()
    m.allocate(0, tokens(5), 5)
    m.commit(0, tokens(8), 8)
    assert m.match_prefix(tokens(9)) == 8
    m.check_invariants()


def test_a_commit_that_is_refused_leaves_no_gap_in_the_chain():
    m = manager()
    bad = [*tokens(4), 1 << 70, 5, 6, 7, *tokens(4)]
    m.allocate(0, bad, 12)
    with pytest.raises(ValueError, match="tokens: expected 64-bit integers"):
        m.commit(0, bad, 8)
    assert m.match_prefix(tokens(5)) == 0
    m.commit(0, tokens(12, start=50), 12)
    assert m.match_prefix(tokens(13, start=50)) == 12
    assert m.match_prefix(tokens(9, start=54)) == 0
    m.check_invariants()


def test_without_a_prefix_cache_nothing_is_found():
    m = manager(prefix_cache=False)
    m.allocate(0, tokens(8), 8)
    m.commit(0, tokens(8), 8)
    assert m.match_prefix(tokens(9)) == 0
    assert m.usage().num_cached_blocks == 0


def test_reset_is_refused_while_a_sequence_lives():
    m = manager()
    m.allocate(0, tokens(8), 8)
    m.commit(0, tokens(8), 8)
    assert not m.reset_prefix_cache()
    m.free(0)
    assert m.reset_prefix_cache()
    assert m.match_prefix(tokens(9)) == 0
    m.check_invariants()


def test_usage_counts_shared_slots_once():
    m = manager()
    m.allocate(0, tokens(6), 6)
    m.fork(0, 1)
    usage = m.usage()
    assert (usage.num_stored_tokens, usage.num_logical_tokens) == (6, 12)
    assert (usage.num_used_blocks, usage.num_internal_slots) == (2, 2)
    assert usage.waste_fraction == 2 / 8
    assert usage.shared_fraction == 0.5


def test_usage_takes_the_callers_word_for_growth_inside_a_block():
    m = manager()
    m.allocate(0, tokens(5), 5)
    assert m.usage().num_internal_slots == 3
    assert m.usage({0: 7, 99: 50}).num_internal_slots == 1
    assert m.usage({0: 100}).num_internal_slots == 0  # no more than its blocks hold


@pytest.mark.parametrize(
    "misuse",
    [
        lambda m: m.allocate(0, tokens(4), 4),
        lambda m: m.allocate(1, tokens(4), 5),
        lambda m: m.allocate(1, tokens(4), -1),
        lambda m: m.append(7, 1),
        lambda m: m.append(0, -2),
        lambda m: m.commit(7, tokens(4), 4),
        lambda m: m.commit(0, tokens(40), 40),
        lambda m: m.commit(0, tokens(7), 8),
        lambda m: m.fork(7, 8),
        lambda m: m.fork(0, 0),
        lambda m: m.free(7),
        lambda m: m.free(0, -1),
        lambda m: m.table(7),
        lambda m: m.table(0).slots(0, 13),
        lambda m: m.table(0).slots(3, 2),
        lambda m: m.table(0).slots(-1, 2),
    ],
)
def test_misuse_is_refused_and_changes_nothing(misuse):
    m = manager()
    m.allocate(0, tokens(8), 8)
    before = m.usage()
    with pytest.raises(ValueError, match="expected"):
        misuse(m)
    assert m.usage() == before
    m.check_invariants()


def test_forks_may_both_commit_the_blocks_they_share():
    m = manager()
    m.allocate(0, tokens(8), 8)
    m.fork(0, 1)
    m.commit(0, tokens(8), 8)
    m.append(1, 12)
    m.commit(1, tokens(12), 12)
    assert m.match_prefix(tokens(13)) == 12
    m.check_invariants()
    m.free(0)
    m.free(1)
    m.check_invariants()


def test_a_fork_cannot_commit_a_shared_block_as_something_else():
    m = manager()
    m.allocate(0, tokens(8), 8)
    m.fork(0, 1)
    m.commit(0, tokens(8), 8)
    with pytest.raises(ValueError, match="block id: expected a block not indexed yet"):
        m.commit(1, tokens(8, start=50), 8)
    m.check_invariants()
