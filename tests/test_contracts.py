"""The scheduler on the real block manager: what the two promise each other, under faults."""

import subprocess
import sys

import pytest

from blocks.kv import BlockManager
from blocks.sched import Allocator, Request, Scheduler
from blocks.sched.simulate import Options, PagedAllocator, simulate


def make_manager(num_usable_blocks: int, block_size: int) -> BlockManager:
    return BlockManager(num_usable_blocks + 1, block_size)  # and the null block


def make_uncached(num_usable_blocks: int, block_size: int) -> BlockManager:
    return BlockManager(num_usable_blocks + 1, block_size, prefix_cache=False)


def simulate_apart(factory: str, first_seed: int, num_seeds: int, steps: int) -> str:
    """Simulate in a process of its own, without the type checks of the test run."""
    code = (
        f"from tests.test_contracts import {factory}, Options, simulate\n"
        f"for seed in range({first_seed}, {first_seed + num_seeds}):\n"
        f"    simulate(Options.from_seed(seed), {steps}, {factory})\n"
        "print('no breach')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return run.stdout.strip() or run.stderr


def test_block_manager_meets_the_protocols() -> None:
    manager = make_manager(4, 4)
    assert isinstance(manager, Allocator)
    assert isinstance(manager, PagedAllocator)


def test_100_000_steps_with_faults_over_200_seeds() -> None:
    assert simulate_apart("make_manager", 0, 200, 500) == "no breach"


@pytest.mark.nightly
def test_1_000_000_steps_with_faults_over_400_seeds() -> None:
    assert simulate_apart("make_manager", 10_000, 400, 2500) == "no breach"


def test_without_prefix_cache() -> None:
    assert simulate_apart("make_uncached", 0, 20, 500) == "no breach"


def test_annotations_hold_under_faults() -> None:
    simulate(Options.from_seed(3), 150, make_manager)


def run_step(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    """One step that draws token 7; returns (start, num_tokens, num_samples) per entry."""
    batch = scheduler.schedule()
    scheduler.update(batch, [[7] * entry.num_samples for entry in batch.entries])
    return [entry[1:4] for entry in batch.entries]


def make_pair(num_blocks: int = 16) -> tuple[BlockManager, Scheduler]:
    manager = make_manager(num_blocks, 4)
    return manager, Scheduler(manager, token_budget=32, max_num_seqs=8, max_model_len=60)


def test_generated_text_is_found_by_the_next_turn() -> None:
    _, scheduler = make_pair()
    first = scheduler.add(Request(request_id="a", prompt_tokens=[1, 2, 3], max_tokens=6))
    while scheduler.has_work():
        run_step(scheduler)
    scheduler.add(Request(request_id="b", prompt_tokens=[*first.tokens, 9], max_tokens=1))
    assert run_step(scheduler) == [(8, 2, 1)], "the eight tokens that were computed are cached"


def test_failed_step_unshares_what_it_would_have_filled() -> None:
    manager, scheduler = make_pair()
    prompt = list(range(9))
    for name in "abc":
        scheduler.add(Request(request_id=name, prompt_tokens=prompt, max_tokens=2))
    batch = scheduler.schedule()
    assert [entry.start for entry in batch.entries] == [0, 8, 8]
    assert manager.num_free_blocks == 16 - 5
    scheduler.cancel("a")
    scheduler.fail(batch)
    manager.check_invariants()
    assert manager.match_prefix(prompt) == 0
    assert manager.num_free_blocks == 16
    assert run_step(scheduler) == [(0, 9, 1)], "suspects of a failed step run one at a time"
    assert run_step(scheduler) == [(9, 1, 1), (8, 1, 1)]


def test_siblings_copy_the_block_they_share_once_each_writes() -> None:
    manager, scheduler = make_pair()
    scheduler.add(Request(request_id="a", prompt_tokens=[1] * 6, max_tokens=3, num_samples=3))
    run_step(scheduler)
    assert manager.take_copies() == []
    batch = scheduler.schedule()
    copies = manager.take_copies()
    assert len(copies) == 2, "the last of three owners writes in place"
    assert len({source for source, _ in copies}) == 1
    scheduler.update(batch, [[7]] * 3)


def test_steady_decode_leaves_the_manager_alone_inside_a_block() -> None:
    manager, scheduler = make_pair()
    scheduler.add(Request(request_id="a", prompt_tokens=[1, 2, 3, 4, 5], max_tokens=8))
    run_step(scheduler)
    free = []
    for _ in range(6):
        run_step(scheduler)
        free.append(manager.num_free_blocks)
    assert free == [14, 14, 14, 13, 13, 13]
