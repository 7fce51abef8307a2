"""Ranks as threads of one process, and parts of tensors for them."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor

from recipes.train.checkpoint import Box, Part, Ranks

T = TypeVar("T")


class ThreadRanks:
    """One rank of several that meet at a barrier."""

    def __init__(self, rank: int, meeting: threading.Barrier, table: list[Any]) -> None:
        self.rank, self.num_ranks = rank, meeting.parties
        self._meeting, self._table = meeting, table

    def leave(self) -> None:
        """Fail everyone who waits for this rank, now or later."""
        self._meeting.abort()

    def gather(self, value: T) -> list[T] | None:
        self._table[self.rank] = value
        self._meeting.wait(20)
        found = list(self._table)
        self._meeting.wait(20)
        return found if self.rank == 0 else None

    def broadcast(self, value: T) -> T:
        if self.rank == 0:
            self._table[0] = value
        self._meeting.wait(20)
        found = self._table[0]
        self._meeting.wait(20)
        return found


def on_ranks(num_ranks: int, work: Callable[[Ranks], T]) -> list[T | Exception]:
    """Run ``work`` on every rank; what each returned or raised."""
    meeting, table = threading.Barrier(num_ranks), [None] * num_ranks
    results: list[Any] = [None] * num_ranks

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, meeting, table))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def box_of(whole: Tensor, *places: tuple[tuple[int, ...], tuple[int, ...]]) -> Part:
    """The boxes of a tensor that begin at some offsets and have some shapes."""
    boxes = []
    for offsets, shape in places:
        spans = (slice(o, o + n) for o, n in zip(offsets, shape, strict=True))
        boxes.append(Box(offsets, whole[tuple(spans)]))
    return Part.of(whole.shape, whole.dtype, boxes)
