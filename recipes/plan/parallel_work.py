"""``in_parallel``: the same work on many things, in processes side by side."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

_WORK: list[Callable[[Any], Any]] = []
"""What forked processes do: inherited, so that only results are copied."""


def in_parallel(
    work: Callable[[Any], Any], things: Sequence[Any], workers: int | None
) -> Iterator[Any]:
    """Results in the order of ``things``, as they come.

    Args:
        workers: processes; None for one a core. One does it here.
    """
    count = min(workers or len(os.sched_getaffinity(0)), len(things))
    if count <= 1:
        yield from map(work, things)
        return
    _WORK.append(work)
    try:
        with multiprocessing.get_context("fork").Pool(count) as pool:
            yield from pool.imap(_run, things)
    finally:
        _WORK.pop()


def _run(thing: Any) -> Any:
    return _WORK[-1](thing)
