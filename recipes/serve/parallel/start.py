"""How processes that are ranks come to life on this machine. Another launcher needs ``Ranks``."""

import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from recipes.serve.parallel.rank import be_rank
from recipes.serve.parallel.rank_spec import RankSpec

ROOT = Path(__file__).parents[3]
UNKNOWN = 256
"""An exit code that no process has: it is gone, and whoever started it cannot tell how it ended."""


class Ranks(Protocol):
    """Processes that were started and may have ended."""

    def exits(self) -> dict[int, int]:
        """Exit codes, by rank, of those that ended; -9 for one that signal 9 killed, or UNKNOWN."""
        ...

    def end(self) -> None:
        """Kill those that still run, and wait for their end."""
        ...


Start = Callable[[Sequence[RankSpec]], Ranks]
"""Starts a process for every spec, each to call ``run_rank``, and returns at once."""


class Processes:
    """Ranks that are processes of this one, by rank."""

    def __init__(self, processes: dict[int, Any], code_of: Callable[[Any], int | None]) -> None:
        self._processes, self._code_of = processes, code_of

    def exits(self) -> dict[int, int]:
        codes = {rank: self._code_of(process) for rank, process in self._processes.items()}
        return {rank: code for rank, code in codes.items() if code is not None}

    def end(self) -> None:
        for process in self._processes.values():
            if self._code_of(process) is None:
                process.kill()
        deadline = time.monotonic() + 10
        while len(self.exits()) < len(self._processes) and time.monotonic() < deadline:
            time.sleep(0.002)


def exec_ranks(specs: Sequence[RankSpec]) -> Ranks:
    """Fresh interpreters, which cost the import of torch each, and inherit nothing.

    Raises:
        OSError: one cannot be started; none is then left.
    """
    return _all_of(specs, _exec_rank, subprocess.Popen.poll)


def _exec_rank(spec: RankSpec) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.serve.parallel"],
        stdin=subprocess.PIPE,
        env=environment(spec.num_threads),
    )
    hand_over(spec.to_json(), process)
    return process


def environment(num_threads: int) -> dict[str, str]:
    """Of an interpreter that finds this package and computes with so many threads."""
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(num_threads),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
    }


def hand_over(text: str, process: subprocess.Popen) -> None:
    """Give a process its standard input, unless it has ended: its exit code tells of that."""
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
        pipe.write(text.encode())


def fork_ranks(specs: Sequence[RankSpec]) -> Ranks:
    """Forks of this process, on the CPU only: nothing is imported again.

    For tests and small programs: whatever this process has open stays open in them.

    Raises:
        OSError: as ``exec_ranks``.
    """
    context = multiprocessing.get_context("fork")

    def fork(spec: RankSpec) -> Any:
        process = context.Process(target=be_rank, args=(spec.to_json(),), daemon=True)
        process.start()
        return process

    return _all_of(specs, fork, lambda process: process.exitcode)


def _all_of(
    specs: Sequence[RankSpec],
    start: Callable[[RankSpec], Any],
    code_of: Callable[[Any], int | None],
) -> Processes:
    """Start a process for every spec, or leave none."""
    started: dict[int, Any] = {}
    try:
        for spec in specs:
            started[spec.rank] = start(spec)
    except BaseException:
        Processes(started, code_of).end()
        raise
    return Processes(started, code_of)
