"""An event loop whose clock jumps to whatever is planned next, and never waits."""

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs what is ready, then moves its clock to the next timer, exactly.

    For what talks to nobody outside: a wait for a socket alone never ends, and is refused.
    """

    def __init__(self) -> None:
        super().__init__(selectors.SelectSelector())
        self._now_s = 0.0

    def time(self) -> float:
        return self._now_s

    def _run_once(self) -> None:
        if not self._ready:  # type: ignore[attr-defined]
            timers = [t for t in self._scheduled if not t.cancelled()]  # type: ignore[attr-defined]
            if not timers:
                raise RuntimeError("nothing is planned, and nothing will ever happen")
            self._now_s = max(self._now_s, min(timer.when() for timer in timers))
        self._clock_resolution = math.ulp(self._now_s)  # what is later than now is not now
        super()._run_once()  # type: ignore[misc]


def run_virtual(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns, on a loop of its own.

    >>> async def wait() -> float:
    ...     await asyncio.sleep(3600)
    ...     return asyncio.get_running_loop().time()
    >>> run_virtual(wait())
    3600.0
    """
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(coroutine)
