"""``in_parallel``: the same work on many things, in processes side by side."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_WORK: list[Callable[[Any], Any]] = []
"""What forked processes do: inherited, so that only results are copied."""

LOOK_EVERY_S = 0.5
"""How often a forked process looks whether the one that forked it is there."""


def in_parallel(
    work: Callable[[Any], Any], things: Sequence[Any], workers: int | None
) -> Iterator[Any]:
    """Results in the order of ``things``, as they come.

    Processes end with the one that asked for them, however that one ends.

    Args:
        workers: processes; None for one a core. One does it here.
    """
    count = min(workers or len(os.sched_getaffinity(0)), len(things))
    if count <= 1:
        yield from map(work, things)
        return
    _WORK.append(work)
    try:
        context = multiprocessing.get_context("fork")
        with context.Pool(count, initializer=_begin, initargs=(os.getpid(),)) as pool:
            yield from pool.imap(_run, things)
    finally:
        _WORK.pop()


def _run(thing: Any) -> Any:
    return _WORK[-1](thing)


def _begin(parent: int) -> None:
    """Handlers of the process forked from would outlive the signal that ends a pool's; of an
    interruption only that process speaks."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY_S)
    os._exit(1)
