"""The scheduler's decisions, one behaviour per test."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from blocks.sched import (
    Batch,
    FinishReason,
    Output,
    QueueFull,
    Request,
    Scheduler,
    Sequence,
    State,
    Unservable,
    aged_priority,
)
from blocks.sched.reference import ReferenceAllocator


class Clock:
    """A clock that only the test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def make(num_blocks: int = 16, block_size: int = 4, **options: Any) -> Scheduler:
    defaults: dict[str, Any] = {
        "token_budget": 32,
        "max_num_seqs": 8,
        "max_model_len": 64,
        "clock": Clock(),
    }
    return Scheduler(ReferenceAllocator(num_blocks, block_size), **(defaults | options))


def ask(name: str, prompt: int | list[int] = 5, max_tokens: int = 4, **options: Any) -> Request:
    tokens = list(range(100, 100 + prompt)) if isinstance(prompt, int) else prompt
    return Request(request_id=name, prompt_tokens=tokens, max_tokens=max_tokens, **options)


def step(
    scheduler: Scheduler, draw: Callable[[Sequence, int], int] = lambda sequence, i: 7
) -> tuple[Batch, list[Output]]:
    batch = scheduler.schedule()
    scheduler.check_invariants()
    sampled = [[draw(e.sequence, i) for i in range(e.num_samples)] for e in batch.entries]
    outputs = scheduler.update(batch, sampled)
    scheduler.check_invariants()
    return batch, outputs


def shares(batch: Batch) -> list[tuple[str, int, int, int]]:
    return [(e.sequence.request.request_id, *e[1:4]) for e in batch.entries]


def drain(scheduler: Scheduler, limit: int = 500) -> dict[str, list[list[int]]]:
    """Run until nothing is left; returns output tokens per request and sample."""
    ended: dict[str, dict[int, list[int]]] = {}
    for _ in range(limit):
        if not scheduler.has_work():
            break
        for output in step(scheduler)[1]:
            if output.finish_reason is not None:
                sequence = output.sequence
                group = ended.setdefault(sequence.request.request_id, {})
                group[sequence.index] = sequence.output_tokens
    assert not scheduler.has_work(), "nothing may be left"
    assert scheduler.allocator.num_free_blocks == scheduler.allocator.num_usable_blocks
    return {name: [group[i] for i in sorted(group)] for name, group in ended.items()}


def test_imports_without_torch() -> None:
    code = "import blocks.sched, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_prompt_then_decodes_until_length() -> None:
    scheduler = make()
    sequence = scheduler.add(ask("a", 5, max_tokens=3))
    assert shares(step(scheduler)[0]) == [("a", 0, 5, 1)]
    assert sequence.state is State.DECODING
    assert shares(step(scheduler)[0]) == [("a", 5, 1, 1)]
    batch, outputs = step(scheduler)
    assert shares(batch) == [("a", 6, 1, 1)]
    assert [(o.token, o.finish_reason) for o in outputs] == [(7, FinishReason.LENGTH)]
    assert sequence.output_tokens == [7, 7, 7]
    assert not scheduler.has_work()
    assert len(scheduler.schedule()) == 0


def test_decodes_and_prompt_chunks_share_a_step() -> None:
    scheduler = make(token_budget=8)
    scheduler.add(ask("a", 5))
    step(scheduler)
    scheduler.add(ask("b", list(range(200, 212))))
    scheduler.add(ask("c", list(range(300, 303))))
    assert shares(step(scheduler)[0]) == [("a", 5, 1, 1), ("b", 0, 7, 0)]
    assert shares(step(scheduler)[0]) == [("a", 6, 1, 1), ("b", 7, 5, 1), ("c", 0, 2, 0)]
    assert shares(step(scheduler)[0]) == [("a", 7, 1, 1), ("b", 12, 1, 1), ("c", 2, 1, 1)]


def test_cached_prefix_is_not_computed_again() -> None:
    scheduler = make()
    scheduler.add(ask("a", 9, max_tokens=1))
    step(scheduler)
    b = scheduler.add(ask("b", 9, max_tokens=1))
    assert shares(step(scheduler)[0]) == [("b", 8, 1, 1)]
    assert b.num_cached == 8
    assert (scheduler.counters.prefix_hit_tokens, scheduler.counters.prefix_query_tokens) == (8, 18)


def test_requests_of_one_step_share_the_blocks_that_the_first_fills() -> None:
    scheduler = make()
    scheduler.add(ask("a", 9))
    scheduler.add(ask("b", 9))
    scheduler.add(ask("c", 9, namespace="other"))
    assert shares(step(scheduler)[0]) == [("a", 0, 9, 1), ("b", 8, 1, 1), ("c", 0, 9, 1)]


def test_samples_fork_when_the_prompt_completes() -> None:
    scheduler = make(token_budget=8)
    scheduler.add(ask("a", 10, max_tokens=3, num_samples=3))
    assert shares(step(scheduler)[0]) == [("a", 0, 8, 0)]
    batch, outputs = step(scheduler, lambda sequence, i: 50 + i)
    assert shares(batch) == [("a", 8, 2, 3)]
    assert [(o.sequence.index, o.token) for o in outputs] == [(0, 50), (1, 51), (2, 52)]
    assert scheduler.allocator.num_free_blocks == 16 - 3
    assert shares(step(scheduler)[0]) == [("a", 10, 1, 1)] * 3
    assert scheduler.allocator.num_free_blocks == 16 - 5, "two of three copied the last block"
    assert drain(scheduler) == {"a": [[50, 7, 7], [51, 7, 7], [52, 7, 7]]}


def test_more_samples_than_places_run_one_after_another() -> None:
    scheduler = make(max_num_seqs=2, token_budget=8)
    scheduler.add(ask("a", 10, max_tokens=4, num_samples=5))
    assert drain(scheduler) == {"a": [[7] * 4] * 5}


def test_first_sample_may_end_with_its_first_token() -> None:
    scheduler = make()
    scheduler.add(ask("a", 5, max_tokens=2, num_samples=2, stop_token_ids=[50]))
    outputs = step(scheduler, lambda sequence, i: 50 + i)[1]
    assert [o.finish_reason for o in outputs] == [FinishReason.STOP_TOKEN, None]
    assert drain(scheduler) == {"a": [[51, 7]]}


def test_latest_arrival_is_preempted_and_recomputed() -> None:
    scheduler = make(num_blocks=6, max_num_seqs=4)
    a = scheduler.add(ask("a", [1, 2, 3, 4], max_tokens=12))
    b = scheduler.add(ask("b", [5, 6, 7, 8], max_tokens=12))
    for _ in range(20):
        batch = step(scheduler)[0]
        if batch.preempted:
            break
    assert batch.preempted == (b,)
    assert (b.state, b.num_computed, b.num_preemptions) == (State.WAITING, 0, 1)
    assert shares(batch) == [("a", a.num_computed - 1, 1, 1)], "nobody is admitted in this step"
    assert drain(scheduler) == {"a": [[7] * 12], "b": [[7] * 12]}


def test_priority_decides_admission_and_victim() -> None:
    scheduler = make(policy="priority", max_num_seqs=1, token_budget=8)
    for name, level in (("low", 5), ("high", 0), ("mid", 2)):
        scheduler.add(ask(name, 3, max_tokens=1, priority=level))
    order = [step(scheduler)[0].entries[0].sequence.request.request_id for _ in range(3)]
    assert order == ["high", "mid", "low"]
    scheduler = make(policy="priority", num_blocks=6)
    low = scheduler.add(ask("low", [1, 2, 3, 4], max_tokens=12, priority=1))
    high = scheduler.add(ask("high", [5, 6, 7, 8], max_tokens=12, priority=0))
    drain(scheduler)
    assert (low.num_preemptions > 0, high.num_preemptions) == (True, 0)


def test_waiting_makes_up_for_priority() -> None:
    clock = Clock()
    scheduler = make(policy=aged_priority(10.0), max_num_seqs=1, token_budget=8, clock=clock)
    scheduler.add(ask("old", 3, max_tokens=1, priority=3))
    clock.now = 29.0
    scheduler.add(ask("ahead", 3, max_tokens=1, priority=0))
    clock.now = 31.0
    scheduler.add(ask("behind", 3, max_tokens=1, priority=0))
    clock.now = -1000.0  # a clock that jumps back does not let anybody jump the queue
    scheduler.add(ask("last", 3, max_tokens=1, priority=0))
    order = [step(scheduler)[0].entries[0].sequence.request.request_id for _ in range(4)]
    assert order == ["ahead", "old", "behind", "last"]


def test_policy_may_be_any_function() -> None:
    scheduler = make(policy=lambda request, arrival: len(request.prompt_tokens), max_num_seqs=1)
    for name, size in (("long", 9), ("short", 2)):
        scheduler.add(ask(name, size, max_tokens=1))
    assert shares(step(scheduler)[0])[0][0] == "short"


@pytest.mark.parametrize(
    ("options", "draws", "tokens", "reason"),
    [
        ({"eos_token_ids": [3]}, [1, 3], [1, 3], FinishReason.EOS),
        ({"stop_token_ids": [4], "eos_token_ids": [3]}, [4], [4], FinishReason.STOP_TOKEN),
        ({"eos_token_ids": [3], "ignore_eos": True}, [3] * 4, [3] * 4, FinishReason.LENGTH),
        (
            {"eos_token_ids": [3], "ignore_eos": True, "stop_token_ids": [3]},
            [3],
            [3],
            FinishReason.STOP_TOKEN,
        ),
        ({"eos_token_ids": [3], "min_tokens": 3}, [3] * 4, [3] * 3, FinishReason.EOS),
        ({"max_tokens": 2, "min_tokens": 2, "eos_token_ids": [3]}, [1, 3], [1, 3], "eos"),
        ({"max_tokens": 1}, [1], [1], FinishReason.LENGTH),
    ],
)
def test_stop_conditions(
    options: dict[str, Any], draws: list[int], tokens: list[int], reason: FinishReason
) -> None:
    scheduler = make()
    sequence = scheduler.add(ask("a", 5, **options))
    while scheduler.has_work():
        step(scheduler, lambda sequence, i: draws[sequence.num_output])
    assert sequence.output_tokens == tokens
    assert sequence.finish_reason == reason


def test_stop_found_by_the_caller_ends_one_sample() -> None:
    scheduler = make()
    scheduler.add(ask("a", 5, num_samples=2))
    outputs = step(scheduler)[1]
    assert scheduler.stop(outputs[0].sequence.sequence_id)
    assert not scheduler.stop(outputs[0].sequence.sequence_id), "it is over already"
    assert outputs[0].sequence.finish_reason is FinishReason.STOP_STRING
    scheduler.check_invariants()
    assert drain(scheduler) == {"a": [[7] * 4]}


@pytest.mark.parametrize("moment", ["waiting", "mid-chunk", "decoding", "in flight", "forked"])
def test_cancel_at_any_moment_gives_everything_back(moment: str) -> None:
    scheduler = make(token_budget=8)
    steps = {"waiting": 0, "mid-chunk": 1, "decoding": 3, "in flight": 1, "forked": 2}[moment]
    scheduler.add(ask("a", 12, num_samples=3))
    for _ in range(steps):
        step(scheduler)
    batch = scheduler.schedule() if moment == "in flight" else None
    assert scheduler.cancel("a")
    assert not scheduler.cancel("a")
    if batch is not None:
        assert scheduler.update(batch, [[7] * e.num_samples for e in batch.entries]) == []
        assert scheduler.counters.num_stale_entries == 1
    scheduler.check_invariants()
    assert scheduler.allocator.num_free_blocks == 16
    assert not scheduler.has_work()
    scheduler.add(ask("a", 12))
    assert drain(scheduler) == {"a": [[7] * 4]}, "the name can be used again"


def test_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = make(num_blocks=4, max_model_len=40)
    with pytest.raises(Unservable, match=r"at most 40 tokens.*got 30 prompt \+ 11 new tokens"):
        scheduler.add(ask("long", 30, max_tokens=11))
    with pytest.raises(Unservable, match=r"4 cache blocks of 4 tokens.*14 prompt \+ 4 .*= 5 bl"):
        scheduler.add(ask("big", 14, max_tokens=4))
    assert not scheduler.has_work()
    scheduler.add(ask("fits", 14, max_tokens=3, num_samples=3))
    assert drain(scheduler) == {"fits": [[7] * 3] * 3}


def test_bounded_queue_refuses_and_changes_nothing() -> None:
    scheduler = make(max_waiting=2)
    for name in "ab":
        scheduler.add(ask(name))
    with pytest.raises(QueueFull, match=r"at most 2 sequences.*got 2 sequences"):
        scheduler.add(ask("c"))
    step(scheduler)
    scheduler.add(ask("c"))
    assert set(drain(scheduler)) == {"a", "b", "c"}
    scheduler = make(max_waiting_tokens=8)
    scheduler.add(ask("a", 9))  # a lone request may exceed the bound
    with pytest.raises(QueueFull, match=r"and 8 tokens.*9 tokens"):
        scheduler.add(ask("b", 1))


def test_failed_step_is_recomputed_and_leaves_nothing_findable() -> None:
    scheduler = make()
    scheduler.add(ask("a", 9))
    scheduler.add(ask("b", 9))
    assert scheduler.fail(scheduler.schedule()) == []
    scheduler.check_invariants()
    assert scheduler.allocator.num_free_blocks == 16
    assert scheduler.allocator.match_prefix(list(range(100, 110))) == 0
    assert drain(scheduler) == {"a": [[7] * 4], "b": [[7] * 4]}


def test_failed_decode_keeps_what_earlier_steps_computed() -> None:
    scheduler = make()
    scheduler.add(ask("a", 9))
    step(scheduler)
    scheduler.fail(scheduler.schedule())
    assert shares(step(scheduler)[0]) == [("a", 8, 2, 1)]


def test_the_request_that_breaks_every_step_is_found_and_ended_alone() -> None:
    scheduler = make(num_blocks=64, token_budget=64)
    for i in range(8):
        scheduler.add(ask(f"r{i}", [i + 1] * 5))
    failed: list[str] = []
    ended: set[str] = set()
    for _ in range(100):
        batch = scheduler.schedule()
        if any(e.sequence.request.request_id == "r3" for e in batch.entries):
            failed += [o.sequence.request.request_id for o in scheduler.fail(batch)]
        else:
            outputs = scheduler.update(batch, [[7] * e.num_samples for e in batch.entries])
            ended |= {o.sequence.request.request_id for o in outputs if o.finish_reason}
        scheduler.check_invariants()
    assert failed == ["r3"]
    assert ended == {f"r{i}" for i in range(8)} - {"r3"}
    assert scheduler.counters.num_failed_steps <= 6


def test_failing_one_sample_leaves_the_rest() -> None:
    scheduler = make()
    scheduler.add(ask("a", 9))
    b = scheduler.add(ask("b", [1, 2, 3, 4, 5]))
    batch = scheduler.schedule()
    outputs = scheduler.fail_sequences([b.sequence_id])
    assert outputs == [Output(b, None, FinishReason.FAILED)]
    assert scheduler.fail_sequences([b.sequence_id]) == []
    assert len(scheduler.update(batch, [[7], [7]])) == 1
    assert scheduler.allocator.match_prefix([1, 2, 3, 4, 5]) == 0
    assert drain(scheduler) == {"a": [[7] * 4]}


def test_late_and_duplicate_updates_are_dropped() -> None:
    scheduler = make()
    a = scheduler.add(ask("a", 5))
    first = scheduler.schedule()
    scheduler.fail(first)
    second = scheduler.schedule()
    assert scheduler.update(first, [[9]]) == []
    assert len(scheduler.update(second, [[7]])) == 1
    assert scheduler.update(second, [[9]]) == []
    assert scheduler.fail(second) == []
    assert a.output_tokens == [7]
    assert scheduler.counters.num_stale_batches == 3


def test_misuse_is_refused_before_anything_changes() -> None:
    scheduler = make()
    scheduler.add(ask("a", 5))
    with pytest.raises(ValueError, match="request_id: expected one that is not in use, got 'a'"):
        scheduler.add(ask("a", 5))
    batch = scheduler.schedule()
    with pytest.raises(RuntimeError, match=r"beside step 1; pass that to update"):
        scheduler.schedule()
    with pytest.raises(ValueError, match=r"sampled\[0\]: expected 1 token ids, got 2"):
        scheduler.update(batch, [[1, 2]])
    with pytest.raises(ValueError, match="sampled: expected 1 entries, got 0"):
        scheduler.update(batch, [])
    assert len(scheduler.update(batch, [[1]])) == 1
    with pytest.raises(ValueError, match="token_budget: expected at least max_num_seqs"):
        make(token_budget=4, max_num_seqs=8)
    with pytest.raises(ValueError, match="policy: expected 'fcfs' or 'priority'"):
        make(policy="lottery")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"request_id": ""}, "request_id"),
        ({"prompt_tokens": []}, "prompt_tokens: expected at least one"),
        ({"max_tokens": 0}, "max_tokens: expected a positive whole number, got 0"),
        ({"num_samples": 0}, "num_samples"),
        ({"min_tokens": 5}, r"min_tokens: expected at most max_tokens \(4\)"),
        ({"min_tokens": -1}, "min_tokens"),
    ],
)
def test_malformed_requests_are_refused(options: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"request_id": "a", "prompt_tokens": [1], "max_tokens": 4}
    with pytest.raises(ValueError, match=message):
        Request(**(good | options))


def test_decode_inside_its_block_asks_the_allocator_nothing() -> None:
    scheduler = make(block_size=16)
    scheduler.add(ask("a", 3, max_tokens=12))
    step(scheduler)
    calls: list[str] = []
    for name in ("append", "commit", "allocate", "match_prefix"):
        setattr(scheduler.allocator, name, lambda *args, name=name: calls.append(name))
    for _ in range(10):
        step(scheduler)
    assert calls == []


def test_times_are_on_the_callers_clock() -> None:
    clock = Clock()
    scheduler = make(clock=clock)
    a = scheduler.add(ask("a", 5, max_tokens=2, arrival=-1.0))
    for clock.now in (1.0, 2.0):
        step(scheduler)
    assert (a.arrival, a.first_scheduled, a.first_token, a.finished) == (-1.0, 1.0, 1.0, 2.0)
