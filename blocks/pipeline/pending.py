"""Messages of torch.distributed under way: waited for by a thread, or ordered by a stream."""

import queue
import threading
import time
from typing import Any

from torch import Tensor

CLOSE_WITHIN_S = 5.0
"""How long a closing transport waits for each of its threads."""


class Waiter:
    """A thread that waits for the messages of a channel, one after another."""

    def __init__(self) -> None:
        self._queue: queue.Queue[OnThread | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, work: Any, tensor: Tensor) -> "OnThread":
        handle = OnThread(work, tensor)
        self._queue.put(handle)
        return handle

    @property
    def busy(self) -> bool:
        return self._queue.unfinished_tasks > 0

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join(timeout=CLOSE_WITHIN_S)

    def _run(self) -> None:
        while (handle := self._queue.get()) is not None:
            handle.finish()
            del handle  # do not hold the tensor while waiting for the next
            self._queue.task_done()


class OnThread:
    """A message that a thread waits for."""

    def __init__(self, work: Any, tensor: Tensor) -> None:
        self._work: Any = work
        self._tensor = tensor
        self._finished = threading.Event()
        self._error: Exception | None = None

    def finish(self) -> None:
        try:
            self._work.wait()
        except Exception as error:
            self._error = error
        self._work = None
        self._finished.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._finished.set()

    def done(self) -> bool:
        return self._finished.is_set()

    def wait(self, timeout_s: float) -> Tensor:
        if not self._finished.wait(timeout_s):
            raise TimeoutError
        if self._error is not None:
            raise ConnectionError(str(self._error)) from self._error
        return self._tensor


class OnStream:
    """A message on a stream of its own; waiting for it keeps the host back too, so that a rank
    that stands still can say so."""

    def __init__(self, work: Any, tensor: Tensor) -> None:
        self._work, self._tensor = work, tensor

    def done(self) -> bool:
        return self._work.is_completed()

    def wait(self, timeout_s: float) -> Tensor:
        until = time.monotonic() + timeout_s
        while not self._work.is_completed():
            if time.monotonic() >= until:
                raise TimeoutError
            time.sleep(20e-6)
        self._work.wait()  # orders the current stream behind it
        return self._tensor
