"""``Backoff``: what has failed, and when it may be tried again."""

from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Failure(NamedTuple):
    """num: in a row. at_s: when the last one was. delay_s: until the next try."""

    num: int
    at_s: float
    delay_s: float


class Backoff(Generic[Key]):
    """Waits that double with every failure in a row.

    Args:
        first_s, most_s: the first wait, and the longest.

    >>> waits = Backoff(1.0, 60.0)
    >>> waits.fail("a", now_s=10.0), waits.fail("a", now_s=20.0)
    (1, 2)
    >>> waits.waiting(21.9), waits.waiting(22.0), waits.next_s(20.5)
    (frozenset({'a'}), frozenset(), 22.0)
    """

    def __init__(self, first_s: float = 0.5, most_s: float = 60.0) -> None:
        self._first_s, self._most_s = first_s, most_s
        self._failures: dict[Key, Failure] = {}

    def fail(self, key: Key, now_s: float) -> int:
        """It failed; how often in a row by now."""
        num = self.num(key) + 1
        delay_s = min(self._most_s, self._first_s * 2 ** min(num - 1, 60))
        self._failures[key] = Failure(num, now_s, delay_s)
        return num

    def clear(self, key: Key) -> None:
        """It works."""
        self._failures.pop(key, None)

    def num(self, key: Key) -> int:
        """Failures in a row."""
        failure = self._failures.get(key)
        return failure.num if failure else 0

    def waiting(self, now_s: float) -> frozenset[Key]:
        """What is not to be tried yet. A clock that was set back ends a wait."""
        return frozenset(k for k, f in self._failures.items() if 0 <= now_s - f.at_s < f.delay_s)

    def next_s(self, now_s: float) -> float:
        """When the next wait is over; infinite where nothing waits."""
        waiting = self.waiting(now_s)
        ends = [f.at_s + f.delay_s for key, f in self._failures.items() if key in waiting]
        return min(ends, default=float("inf"))
