"""What deciding costs: schedule and update of steady decodes, per running request and step."""

import statistics
import time
from collections import abc
from collections.abc import Callable
from typing import Any

import pytest

from blocks.kv import BlockManager
from blocks.sched import Allocator, Request, Scheduler

NUM_RUNNING = (1, 16, 64, 256, 512)
BLOCK_SIZE = 16
PROMPT_LEN = 64


class NoAllocator:
    """Endless blocks without bookkeeping: what is left is the scheduler alone."""

    block_size = BLOCK_SIZE
    num_usable_blocks = num_free_blocks = 1 << 30

    def match_prefix(self, tokens: abc.Sequence[int], namespace: str = "") -> int:
        return 0

    def allocate(
        self, sequence_id: int, tokens: abc.Sequence[int], num_tokens: int, namespace: str = ""
    ) -> int | None:
        return 0

    def append(self, sequence_id: int, num_tokens: int) -> bool:
        return True

    def commit(self, sequence_id: int, tokens: abc.Sequence[int], num_tokens: int) -> None:
        pass

    def fork(self, parent_id: int, child_id: int) -> None:
        pass

    def free(self, sequence_id: int, num_valid_tokens: int | None = None) -> None:
        pass


def block_manager() -> BlockManager:
    """The real manager with its prefix cache on, large enough for the largest case."""
    return BlockManager(num_blocks=1 << 16, block_size=BLOCK_SIZE)


class SteadyDecode:
    """``num_running`` sequences past their prompts, their block boundaries spread over the steps.

    Calling it decodes as many steps as a block has slots, so every sequence crosses one boundary:
    its full block is hashed and a new one taken.
    """

    def __init__(self, allocator: Allocator, num_running: int) -> None:
        self.num_running = num_running
        self.sampled = [[5]] * num_running
        self.scheduler = Scheduler(
            allocator, token_budget=8192, max_num_seqs=num_running, max_model_len=1 << 20
        )
        for i in range(num_running):
            prompt = [i] * (PROMPT_LEN + i % BLOCK_SIZE)
            request = Request(
                request_id=f"r{i}",
                prompt_tokens=prompt,
                max_tokens=1 << 18,
                eos_token_ids=(0,),
                stop_token_ids=(1, 2),
            )
            self.scheduler.add(request)
        num_decoding = 0
        while num_decoding < num_running:
            batch = self.scheduler.schedule()
            num_decoding = sum(e.num_tokens == e.num_samples == 1 for e in batch.entries)
            self.scheduler.update(batch, [[5] * entry.num_samples for entry in batch.entries])

    def __call__(self) -> None:
        scheduler, sampled = self.scheduler, self.sampled
        for _ in range(BLOCK_SIZE):
            scheduler.update(scheduler.schedule(), sampled)

    def check(self) -> None:
        """Every sequence gains one token per step, and the books are in order."""
        before = self.scheduler.counters.num_generated_tokens
        self()
        gained = self.scheduler.counters.num_generated_tokens - before
        assert gained == BLOCK_SIZE * self.num_running, gained
        self.scheduler.check_invariants()


def us_per_request(make_allocator: Callable[[], Any], num_running: int, rounds: int = 40) -> float:
    """Median over rounds of microseconds of processor time per running request and step."""
    decode = SteadyDecode(make_allocator(), num_running)
    decode.check()
    times = []
    for _ in range(rounds):
        began = time.thread_time()
        decode()
        times.append(time.thread_time() - began)
    return statistics.median(times) / BLOCK_SIZE / num_running * 1e6


@pytest.mark.parametrize("num_running", NUM_RUNNING)
@pytest.mark.parametrize("make_allocator", [NoAllocator, block_manager])
def bench_steady_decode(
    benchmark: Any, make_allocator: Callable[[], Any], num_running: int
) -> None:
    """Sixteen steps of schedule and update; ``us_per_request`` is per running request and step."""
    decode = SteadyDecode(make_allocator(), num_running)
    decode.check()
    benchmark.group = f"steady decode, {num_running} running"
    benchmark.pedantic(decode, rounds=20, warmup_rounds=2)
    if not benchmark.disabled:
        median = benchmark.stats.stats.median
        benchmark.extra_info["us_per_request"] = median / BLOCK_SIZE / num_running * 1e6
