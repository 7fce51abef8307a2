"""Several batches out at a time, as a pipeline of stages wants them."""

import collections
import random

import pytest

from blocks.sched import Batch, Output, Scheduler, State
from tests.sched.test_scheduler import ask, make, shares


def finish(scheduler: Scheduler, batch: Batch) -> list[Output]:
    outputs = scheduler.update(batch, [[7] * entry.num_samples for entry in batch.entries])
    scheduler.check_invariants()
    return outputs


def test_chunks_of_a_prompt_follow_one_another() -> None:
    scheduler = make(token_budget=8, max_in_flight=3)
    (sequence,) = [scheduler.add(ask("a", 20))]
    out = [scheduler.schedule() for _ in range(3)]
    scheduler.check_invariants()
    assert [shares(batch) for batch in out] == [
        [("a", 0, 8, 0)],
        [("a", 8, 8, 0)],
        [("a", 16, 4, 1)],
    ]
    assert (sequence.num_computed, sequence.num_scheduled) == (0, 20)
    for batch in out:
        finish(scheduler, batch)
    assert sequence.state is State.DECODING
    assert scheduler.num_in_flight == 0


def test_a_token_is_waited_for() -> None:
    scheduler = make(max_in_flight=2)
    scheduler.add(ask("a"))
    first = scheduler.schedule()
    assert not scheduler.schedule().entries
    finish(scheduler, first)
    second = scheduler.schedule()
    assert shares(second) == [("a", 5, 1, 1)]
    assert not scheduler.schedule().entries
    assert scheduler.num_in_flight == 1


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_every_batch_gets_its_share_of_the_decodes(depth: int) -> None:
    """All prompts end in one step; soon as many sequences are in each of the batches."""
    scheduler = make(64, token_budget=64, max_in_flight=depth)
    for at in range(7):
        scheduler.add(ask(f"r{at}", max_tokens=30))
    out: collections.deque[Batch] = collections.deque()
    sizes = []
    for _ in range(20 * depth):
        while len(out) < depth and (batch := scheduler.schedule()).entries:
            out.append(batch)
        sizes.append([len(batch) for batch in out])
        finish(scheduler, out.popleft())
    share = -(-7 // depth)
    for found in sizes[2:]:
        assert len(found) == depth
        assert sum(found) == 7
        assert max(found) == share


def test_nobody_is_left_out_for_long() -> None:
    """Between two tokens of a sequence that runs, no more than twice the batches there are end."""
    for seed in range(5):
        rng = random.Random(seed)
        depth = rng.randint(2, 4)
        scheduler = make(64, max_in_flight=depth, max_num_seqs=rng.randint(3, 8))
        for at in range(8):
            scheduler.add(ask(f"r{at}", rng.randint(1, 9), rng.randint(2, 12)))
        out: collections.deque[Batch] = collections.deque()
        last: dict[str, int] = {}
        turn = 0
        while scheduler.has_work():
            while len(out) < depth and (batch := scheduler.schedule()).entries:
                out.append(batch)
            turn += 1
            for sequence, _, _ in finish(scheduler, out.popleft()):
                name = sequence.request.request_id
                assert turn - last.get(name, turn) <= 2 * depth, name
                last[name] = turn


def test_who_gives_way_while_under_way_is_computed_anew() -> None:
    """The newcomer's token is under way when its blocks go to the older one; it draws it again."""
    scheduler = make(4, max_in_flight=2, watermark=0.0)
    old, new = scheduler.add(ask("old", 7, 9)), scheduler.add(ask("new", [1] * 7, 4))
    finish(scheduler, scheduler.schedule())  # both have 8 tokens in two blocks each
    first, second = scheduler.schedule(), scheduler.schedule()
    assert [shares(first), shares(second)] == [[("old", 7, 1, 1)], [("new", 7, 1, 1)]]
    finish(scheduler, first)
    third = scheduler.schedule()  # position 8 of the old one needs a block
    assert third.preempted == (new,)
    assert shares(third) == [("old", 8, 1, 1)]
    assert finish(scheduler, second) == []
    assert scheduler.counters.num_stale_entries == 1
    assert len(new.tokens) == 8
    finish(scheduler, third)
    while scheduler.has_work():
        finish(scheduler, scheduler.schedule())
    assert len(old.tokens) == 16
    assert len(new.tokens) == 11


def test_what_follows_a_failed_step_fails_with_it() -> None:
    """A prefix that the first step fills is found by the second; neither is there afterwards."""
    scheduler = make(token_budget=9, max_num_seqs=2, max_in_flight=2)
    one, two = scheduler.add(ask("one", 9)), scheduler.add(ask("two", 9))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert shares(second) == [("two", 8, 1, 1)]
    assert scheduler.fail(first) == []
    scheduler.check_invariants()
    assert one.state is two.state is State.WAITING
    assert (one.num_failures, two.num_failures) == (1, 0), "it was not in the step that failed"
    assert scheduler.num_in_flight == 1
    assert finish(scheduler, second) == []
    assert shares(scheduler.schedule()) == [("one", 0, 9, 1)]


def test_a_step_that_fails_on_its_way_out_leaves_those_before_it() -> None:
    scheduler = make(token_budget=9, max_num_seqs=2, max_in_flight=2)
    one, two = scheduler.add(ask("one", 9)), scheduler.add(ask("two", [1] * 9))
    first, second = scheduler.schedule(), scheduler.schedule()
    assert scheduler.fail(second) == []
    assert (one.state, two.state) == (State.PREFILLING, State.WAITING)
    assert [output.sequence for output in finish(scheduler, first)] == [one]


def test_batches_end_in_order_and_are_no_more_than_asked_for() -> None:
    scheduler = make(token_budget=8, max_in_flight=2)
    scheduler.add(ask("a", 20))
    first, second = scheduler.schedule(), scheduler.schedule()
    with pytest.raises(RuntimeError, match="at most 2 batches in flight, got another"):
        scheduler.schedule()
    with pytest.raises(RuntimeError, match="expected step 1, the first that is out, got step 2"):
        finish(scheduler, second)
    finish(scheduler, first)
    finish(scheduler, second)
    with pytest.raises(ValueError, match="max_in_flight: expected a positive whole number, got 0"):
        make(max_in_flight=0)
