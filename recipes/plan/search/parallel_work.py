"""``in_parallel``: the same work on many things, in processes side by side."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

_WORK: list[Callable[[Any], Any]] = []
"""What forked processes do: inherited, so that only results are copied."""

LOOK_EVERY_S = 0.5
"""How often a forked process looks whether the one that forked it is there, and the other way."""


def in_parallel(
    work: Callable[[Any], Any], things: Sequence[Any], workers: int | None
) -> Iterator[Any]:
    """Results in the order of ``things``, as they come.

    Processes end with the one that asked for them, however that one ends.

    Args:
        workers: processes; None for one a core. One does it here.

    Raises:
        ChildProcessError: one of them was killed.
    """
    count = min(workers or len(os.sched_getaffinity(0)), len(things))
    if count <= 1:
        yield from map(work, things)
        return
    _WORK.append(work)
    try:
        context, others = multiprocessing.get_context("fork"), multiprocessing.active_children()
        with context.Pool(count, initializer=_begin, initargs=(os.getpid(),)) as pool:
            processes = [p for p in multiprocessing.active_children() if p not in others]
            results = pool.imap(_run, things)
            for _ in things:
                yield _next(results, processes)
    finally:
        _WORK.pop()


def _next(results: Any, processes: Sequence[BaseProcess]) -> Any:
    """A pool waits for ever for what a killed process was at."""
    while True:
        try:
            return results.next(LOOK_EVERY_S)
        except multiprocessing.TimeoutError:
            codes = [process.exitcode for process in processes]
            if any(code is not None for code in codes):
                raise ChildProcessError(
                    f"processes: expected {len(codes)} at work, got exit codes {codes}; "
                    "if memory was short, pass a smaller workers="
                ) from None


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
