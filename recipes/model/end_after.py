"""``end_after``: Python code of this thread ends once it has taken so much processor time."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

LOOK_EVERY = 64


class TookTooLong(BaseException):
    """The time was up; no ``except Exception`` on the way holds it up."""


@contextlib.contextmanager
def end_after(seconds: float, file: str) -> Iterator[None]:
    """Raise in the code under ``with`` after ``seconds`` of this thread's processor time.

    Looked at in every line of code compiled under the name ``file`` and at every call of a Python
    function; a single call into C runs to its end. Takes the place of a debugger's trace function.

    Raises:
        TookTooLong: from wherever the code is.
    """
    deadline, events = time.thread_time() + seconds, 0

    def look(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        nonlocal events
        events += 1
        if events % LOOK_EVERY == 0 and time.thread_time() > deadline:
            raise TookTooLong
        return look if frame.f_code.co_filename == file else None

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)
