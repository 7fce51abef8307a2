"""PendingCopies against memory that is really copied; grouping against in-order copying."""

from hypothesis import given
from hypothesis import strategies as st

from blocks.kv.copies import PendingCopies, independent_groups

BLOCKS = 5
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.integers(0, BLOCKS - 1), st.integers(0, BLOCKS - 1)),
        st.tuples(st.none(), st.integers(0, BLOCKS - 1)),
    ),
    max_size=12,
)


def check_copies(pending, events) -> None:
    """Released blocks may hold anything; all others what running every copy would leave."""
    everything, wanted = list(range(BLOCKS)), set(range(BLOCKS))
    for source, target in events:
        if source is None:
            pending.release([target])
            wanted.discard(target)
        elif source in wanted:  # only blocks in use are copied
            pending.add(source, target)
            everything[target] = everything[source]
            wanted.add(target)
    memory = list(range(BLOCKS))
    for source, target in pending.take():
        memory[target] = memory[source]
    assert [memory[b] for b in wanted] == [everything[b] for b in wanted]
    assert pending.take() == []


@given(EVENTS)
def test_what_is_still_wanted_is_what_all_copies_give(events):
    check_copies(PendingCopies(), events)


def test_a_released_target_costs_no_copy():
    pending = PendingCopies()
    pending.add(1, 2)
    pending.release([2])
    assert pending.take() == []


def test_a_released_target_that_was_copied_on_is_kept():
    pending = PendingCopies()
    pending.add(1, 2)
    pending.add(2, 3)
    pending.release([2])
    assert pending.take() == [(1, 2), (2, 3)]


def test_a_reused_target_is_written_once():
    pending = PendingCopies()
    pending.add(1, 2)
    pending.release([2])
    pending.add(4, 2)
    assert pending.take() == [(4, 2)]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_groups_keep_the_order_and_do_not_interfere(pairs):
    groups = independent_groups(pairs)
    assert [pair for group in groups for pair in group] == pairs
    for group in groups:
        targets = [target for _, target in group]
        assert len(set(targets)) == len(targets)
        interfering = [(s, t) for s, t in group for other in targets if s == other and s != t]
        assert not interfering
