"""``RecentEvents``: the last things that happened, for the page."""

import collections
import threading
import time
from collections.abc import Callable
from typing import Literal

from recipes.serve.page.state import EventView

Kind = Literal["good", "bad", "note"]


class RecentEvents:
    """The last ``keep`` events. Any thread may write or read.

    >>> events = RecentEvents(clock=lambda: 5.0)
    >>> events.add("bad", "group 1 was lost")
    >>> events.view()
    (EventView(ago_s=0.0, kind='bad', text='group 1 was lost'),)
    """

    def __init__(self, keep: int = 50, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._events: collections.deque[tuple[float, Kind, str]] = collections.deque(maxlen=keep)
        self._lock = threading.Lock()

    def add(self, kind: Kind, text: str) -> None:
        """It happens now."""
        with self._lock:
            self._events.append((self._clock(), kind, text))

    def view(self) -> tuple[EventView, ...]:
        """Latest first."""
        now_s = self._clock()
        with self._lock:
            found = list(self._events)
        return tuple(EventView(now_s - at_s, kind, text) for at_s, kind, text in reversed(found))
