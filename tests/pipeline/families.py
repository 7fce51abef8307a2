"""Every family at every size: proved, with and without messages, and in canonical order."""

from collections.abc import Iterable, Sequence

from blocks.pipeline import SCHEDULES, Schedule, check_schedule, lower
from tests.pipeline.faults import FAMILIES

SIZES = ((1,), (1, 1), (3,), (2, 2, 2), (1, 3, 2), (4, 1), (1,) * 5, (2,) * 7)
"""Slices of every sequence: fewer and more sequences than ranks, unequal, rounds not full."""


def prove(num_ranks: Iterable[int], sizes: Sequence[Sequence[int]] = SIZES) -> int:
    """Checks all families on these ranks; returns how many schedules that was."""
    count = 0
    for ranks in num_ranks:
        for num_slices in sizes:
            for name, num_chunks in FAMILIES:
                prove_one(SCHEDULES[name](ranks, num_slices, num_chunks=num_chunks))
                count += 1
    return count


def prove_one(schedule: Schedule) -> None:
    check_schedule(schedule, canonical=True)
    check_schedule(lower(schedule), canonical=True)
