"""How much of the cache holds tokens: paged blocks beside the contiguous reservations before them.

A device-free replay of the comparison in Kwon et al., 2023, sections 3.1 and 6.2: requests of mixed
lengths wait in line for one cache, every running one stores a token a step, and what its policy
took from the cache without storing a token is waste. The baselines reserve contiguous slots from a
buddy allocator; the paged run drives the real `BlockManager`.
"""

import dataclasses
import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Iterable

from blocks._checks import check, fail
from blocks.kv.block_manager import BlockManager


@dataclasses.dataclass(frozen=True)
class Lengths:
    """One request: tokens in its prompt, and tokens it will generate."""

    prompt: int
    output: int


@dataclasses.dataclass(frozen=True)
class WasteShares:
    """Where the cache's slots were, averaged over time while requests waited; sums to 1.

    stored: slots with a token.
    reserved: slots held for tokens that the request will still generate.
    internal: slots held that it will never use.
    external: slots that no waiting request could be given, rounding of the allocator included.
    num_running: mean number of requests in the cache.
    """

    stored: float
    reserved: float
    internal: float
    external: float
    num_running: float


def sharegpt_like(count: int, seed: int = 0, max_len: int = 2048) -> list[Lengths]:
    """Request lengths with the means of the paper's ShareGPT sample: 161.31 in, 337.99 out.

    Lognormal, pairs longer than ``max_len`` drawn again, for which the means drawn from are a
    little higher. The outputs' sigma of 0.75 follows from the paper's bar for full reservations:
    20.4 % of 15.7K slots over 7 requests is a mean of 457 live tokens, which is
    E[in] + E[out^2] / (2 E[out]). The inputs' sigma of 1 is a choice.

    Reference: Kwon et al., 2023, section 6.1 and figures 2 and 11.
    """
    generator = random.Random(seed)

    def draw(mean: float, sigma: float) -> int:
        return max(1, round(generator.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))

    drawn: list[Lengths] = []
    while len(drawn) < count:
        lengths = Lengths(draw(168.0, 1.0), draw(347.5, 0.75))
        if lengths.prompt + lengths.output <= max_len:
            drawn.append(lengths)
    return drawn


Reservation = Callable[[Lengths], int]
"""Slots that a policy reserves for a request when it starts."""


def reserve_max(max_len: int = 2048) -> Reservation:
    """The longest possible sequence ("Orca Max")."""
    return lambda request: max_len


def reserve_pow2(request: Lengths) -> int:
    """The prompt, and the output length rounded up to a power of two ("Orca Pow2")."""
    return request.prompt + _next_pow2(request.output)


def reserve_oracle(request: Lengths) -> int:
    """Exactly what will be used, as if output lengths were known ("Orca Oracle")."""
    return request.prompt + request.output


class BuddyAllocator:
    """Contiguous runs of slots, sizes rounded up to powers of two, halves merged when both free.

    A number of slots that is no power of two is cut into the powers of two it is the sum of.

    Invariants:
        1. Free and taken runs are disjoint and cover all slots.
        2. No free run has its buddy free.
    """

    def __init__(self, num_slots: int) -> None:
        check(num_slots >= 1, "num_slots", "at least 1", num_slots)
        self.num_slots = num_slots
        self._free: dict[int, set[int]] = {}  # size -> starts
        self._taken: dict[int, int] = {}  # start -> size
        start = 0
        for bit in reversed(range(num_slots.bit_length())):
            if num_slots >> bit & 1:
                self._free.setdefault(1 << bit, set()).add(start)
                start += 1 << bit

    def allocate(self, num_slots: int) -> int | None:
        """Start of a run of at least ``num_slots``, or None when no free run is long enough."""
        wanted = _next_pow2(num_slots)
        sizes = [size for size, starts in self._free.items() if size >= wanted and starts]
        if not sizes:
            return None
        size = min(sizes)
        start = min(self._free[size])
        self._free[size].remove(start)
        while size > wanted:
            size //= 2
            self._free.setdefault(size, set()).add(start + size)
        self._taken[start] = size
        return start

    def free(self, start: int) -> None:
        """Give a run back, merging it with its buddy as long as that is free."""
        if start not in self._taken:
            raise fail("start", "a run that is taken", start)
        size = self._taken.pop(start)
        while start ^ size in self._free.get(size, ()):
            self._free[size].remove(start ^ size)
            start &= ~size
            size *= 2
        self._free.setdefault(size, set()).add(start)

    def check_invariants(self) -> None:
        """Assert the invariants of the class."""
        runs = [(start, size) for size, starts in self._free.items() for start in starts]
        for start, size in runs:
            assert start ^ size not in self._free[size], f"2: {start} and its buddy are free"
        end = 0
        for start, size in sorted([*runs, *self._taken.items()]):
            assert start == end, f"1: a run starts at {start}, the one before ends at {end}"
            end += size
        assert end == self.num_slots, f"1: runs end at {end} of {self.num_slots}"


def simulate_contiguous(
    requests: Iterable[Lengths], num_slots: int, reserve: Reservation, *, warm_up: int = 50
) -> WasteShares:
    """Serve ``requests`` first come, first served, each in one contiguous reservation.

    Args:
        requests: in order of arrival; all are there from the start.
        num_slots: slots of the cache.
        reserve: slots a request takes when it starts.
        warm_up: finished requests before averaging begins; it ends with the last admission.

    Raises:
        ValueError: a request that could never start.
    """
    waiting, buddy = deque(requests), BuddyAllocator(num_slots)
    running: list[tuple[int, int, Lengths, int]] = []  # end, start of its run, request, reserved
    totals = _Totals(num_slots)
    now = finished = stored = promised = taken = 0
    while waiting:
        request = waiting[0]
        start = buddy.allocate(reserve(request))
        if start is not None:
            waiting.popleft()
            size = reserve(request)
            heapq.heappush(running, (now + request.output, start, request, size))
            stored += request.prompt
            promised += request.output
            taken += size
            continue
        if not running:
            raise fail("request", f"one that fits into {num_slots} slots", request)
        end, start, request, size = heapq.heappop(running)
        steps, count = end - now, len(running) + 1
        if finished >= warm_up:
            # Every running request turns one promised slot into a stored one each step.
            grown = count * (steps - 1) / 2
            internal = taken - stored - promised
            totals.add(steps, stored + grown, promised - grown, internal, num_slots - taken, count)
        now, finished = end, finished + 1
        stored += count * steps - request.prompt - request.output
        promised -= count * steps
        taken -= size
        buddy.free(start)
    return totals.shares()


def simulate_paged(
    requests: Iterable[Lengths],
    num_slots: int,
    *,
    block_size: int = 16,
    watermark: float = 0.01,
    warm_up: int = 50,
) -> WasteShares:
    """Serve ``requests`` first come, first served, from blocks; preempt the latest when short.

    A preempted request gives up its blocks and returns to the head of the line with what it has
    generated as part of its prompt. What of a last block will be filled is reserved, the rest
    internal; free blocks count as external, since requests wait.

    Args:
        requests, num_slots, warm_up: as in `simulate_contiguous`.
        block_size: slots per block.
        watermark: share of the blocks that admission leaves free for running requests to grow.
    """
    manager = BlockManager(num_slots // block_size + 1, block_size, prefix_cache=False)
    waiting = deque((number, request) for number, request in enumerate(requests))
    reserve = int(watermark * manager.num_usable_blocks)
    running: dict[int, list[int]] = {}  # number -> tokens stored, tokens at its end
    totals = _Totals(num_slots)
    finished = 0
    while waiting:
        while waiting and _admit(manager, *waiting[0], spare=reserve if running else 0):
            number, request = waiting.popleft()
            running[number] = [request.prompt, request.prompt + request.output]
        if not running:
            raise fail("request", f"one that fits into {num_slots} slots", waiting[0][1])
        for number in list(running):
            while number in running and not manager.append(number, running[number][0] + 1):
                latest = next(reversed(running))
                stored, end = running.pop(latest)
                manager.free(latest)
                waiting.appendleft((latest, Lengths(stored, end - stored)))
            if number in running:
                running[number][0] += 1
        if finished >= warm_up:
            totals.add(1, *_paged_slots(manager, running, num_slots), len(running))
        for number in [n for n, (stored, end) in running.items() if stored == end]:
            del running[number]
            manager.free(number)
            finished += 1
    return totals.shares()


def _admit(manager: BlockManager, number: int, request: Lengths, spare: int) -> bool:
    need = -(-request.prompt // manager.block_size) + spare
    if need > manager.num_free_blocks:
        return False
    return manager.allocate(number, range(request.prompt), request.prompt) is not None


def _paged_slots(
    manager: BlockManager, running: dict[int, list[int]], num_slots: int
) -> tuple[int, int, int, int]:
    """Slots stored, reserved, internal, external."""
    usage = manager.usage()
    size = manager.block_size
    reserved = sum(min(end - stored, -stored % size) for stored, end in running.values())
    external = num_slots - usage.num_used_blocks * size
    return usage.num_stored_tokens, reserved, usage.num_internal_slots - reserved, external


class _Totals:
    """Sums over time of the shares of `WasteShares`."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.steps = 0
        self.sums = [0.0] * 5

    def add(self, steps: int, *slots: int | float) -> None:
        self.steps += steps
        self.sums = [total + steps * now for total, now in zip(self.sums, slots, strict=True)]

    def shares(self) -> WasteShares:
        if not self.steps:
            raise fail("requests", "enough to go on after the warm-up", "none", "lower warm_up")
        means = [total / self.steps for total in self.sums]
        stored, reserved, internal, external = (mean / self.num_slots for mean in means[:4])
        return WasteShares(stored, reserved, internal, external, num_running=means[4])


def _next_pow2(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
