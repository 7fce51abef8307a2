"""One run at a time in a folder."""

import contextlib
import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from blocks._checks import fail
from recipes.train.place import Place


@contextlib.contextmanager
def claim_together(folder: Path, place: Place) -> Iterator[None]:
    """``claim`` on the first process of a run; all are refused with it.

    Raises:
        ValueError: another run holds the folder and goes on doing so.
    """
    with contextlib.ExitStack() as held:
        refused = None
        if place.is_first:
            try:
                held.enter_context(claim(folder))
            except ValueError as error:
                refused = error
        refused = place.share(refused)
        if refused is not None:
            raise refused
        yield


@contextlib.contextmanager
def claim(
    folder: Path,
    *,
    patience_s: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """Hold a folder for this process; the operating system lets go when the process ends.

    Processes of a killed run may live a moment longer; they are waited for.

    Raises:
        ValueError: another process holds it and goes on doing so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        deadline = clock() + patience_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if clock() >= deadline:
                    hint = "wait for it, end it, or pass another folder"
                    raise fail("out", "a folder no other run writes to", folder, hint) from None
                sleep(0.1)
        yield
