"""``Inbox``: what threads hand to the one that works."""

import contextlib
import os
import queue
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items in the order in which they came, and a file to be woken by while none are waited for.

    ``put`` may be called from anywhere, signal handlers too.
    """

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[T] = queue.SimpleQueue()
        self._wake, self._waker = os.pipe()
        for end in (self._wake, self._waker):
            os.set_blocking(end, False)
        self._is_watched = False

    def put(self, item: T) -> None:
        self._items.put(item)
        if self._is_watched:
            self._ring()

    def get(self, wait_s: float | None) -> T:
        """The next item.

        Args:
            wait_s: longest to wait for it; 0 not at all, None for ever.

        Raises:
            queue.Empty: there is none in time.
        """
        return self._items.get(block=wait_s != 0, timeout=wait_s or None)

    @contextlib.contextmanager
    def watched(self) -> Iterator[int]:
        """A file that can be read while there are items, and maybe when there are none."""
        self._is_watched = True  # before looking: whoever puts, looks after putting
        if not self._items.empty():
            self._ring()
        try:
            yield self._wake
        finally:
            self._is_watched = False
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 1 << 16)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(self._waker, b"\0")

    def close(self) -> None:
        """Nobody is woken any more."""
        self._is_watched = False
        for end in (self._wake, self._waker):
            os.close(end)
