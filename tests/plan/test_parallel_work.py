"""Work in processes side by side: what they give, and that none is left behind."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.plan.search.parallel_work import in_parallel


def test_results_come_in_order():
    assert list(in_parallel(lambda number: number**2, range(7), 2)) == [n**2 for n in range(7)]


def test_a_killed_process_is_told_of():
    _ends_well(_ask_for_all)


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL], ids=lambda s: s.name)
def test_processes_end_with_the_one_that_asked_for_them(tmp_path, ending):
    asking = multiprocessing.get_context("fork").Process(target=_ask, args=(tmp_path,))
    asking.start()
    try:
        pids = _wait(lambda: [int(path.name) for path in tmp_path.iterdir()], lambda p: len(p) == 2)
        assert asking.pid is not None
        os.kill(asking.pid, ending)
        asking.join(10)
        assert asking.exitcode == -ending
        assert not _wait(lambda: [pid for pid in pids if _alive(pid)], lambda left: not left)
    finally:
        asking.kill()
        asking.join()


def test_processes_end_though_handlers_take_the_signal_for_an_error():
    _ends_well(_ask_for_one)


def _ends_well(work: Callable[[], None]) -> None:
    asking = multiprocessing.get_context("fork").Process(target=work)
    asking.start()
    try:
        asking.join(20)
        assert asking.exitcode == 0
    finally:
        asking.kill()
        asking.join()


def _ask(folder: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    list(in_parallel(lambda _: _mark_and_wait(folder), range(2), 2))


def _mark_and_wait(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(60)


def _ask_for_all() -> None:
    with pytest.raises(ChildProcessError, match=r"expected 2 at work, got exit codes .*-9"):
        list(in_parallel(_killed_at_two, range(4), 2))


def _killed_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def _ask_for_one() -> None:
    signal.signal(signal.SIGTERM, _raise)
    results = in_parallel(_slow_but_first, range(4), 2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]


def _slow_but_first(number: int) -> int:
    try:
        time.sleep(60 if number else 0)
    except RuntimeError:
        time.sleep(60)  # the signal came, and was taken for an error of the work
    return number


def _raise(*_: object) -> None:
    raise RuntimeError("a signal")


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def _wait(look, done):
    """What ``look`` finds, once it is as ``done`` asks or half a minute is over."""
    until = time.monotonic() + 30
    while not done(found := look()) and time.monotonic() < until:
        time.sleep(0.02)
    return found
