"""``run_group``: what the process of a group does, whoever started it."""

import os
import signal
import threading
from collections.abc import Callable

from recipes.place.group.spec import GroupSpec
from recipes.place.group.worker import GroupWorker
from recipes.serve.parallel import Start, exec_ranks


def run_group(
    spec: GroupSpec,
    start_ranks: Start = exec_ranks,
    *,
    host: str | None = None,
    orphaned: Callable[[int], object] = os._exit,
) -> int:
    """Be a group: call the front door, and load, serve and unload models as it orders.

    Returns 0, for an exit code, when the front door says stop or is gone, or at SIGTERM where this
    is the main thread.

    Args:
        start_ranks: brings ``tp * pp`` processes to life for every model, where that is above 1.
        host: address at which ranks on other machines can reach this one; see ``ParallelRunner``.
        orphaned: called with 1, in a thread, when the front door is gone and this process does not
            come to its end by itself, in a step that hangs for example.

    Raises:
        OSError: nobody listens at the address.
        NotProven: whoever listens does not know the key.
    """
    worker = GroupWorker(spec, start_ranks, host, orphaned)
    if threading.current_thread() is not threading.main_thread():
        worker.run()
        return 0
    previous = signal.signal(signal.SIGTERM, lambda *_: worker.end())
    try:
        worker.run()
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0
