"""Processes that compile ahead of time for this one: started once, asked as often as needed.

Whether Triton interprets is decided at its import, so a test run, which interprets, compiles
elsewhere; importing torch and Triton anew for every case file would take longer than the cases.
"""

import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]


def compile_apart(case_module: str, target: str, num_processes: int = 1) -> None:
    """Have the missing cases of ``case_module`` compiled for ``target``, by so many processes.

    Raises:
        RuntimeError: cases that do not compile, by name, or a compiler that crashed.
    """
    asked = [_compiler(number) for number in range(num_processes)]
    for compiler in asked:
        compiler.ask(case_module, target)
    failures = [said for compiler in asked if (said := compiler.answer())]
    if failures:
        raise RuntimeError("\n".join(failures))


@functools.cache
def _compiler(number: int) -> "_Compiler":
    return _Compiler()


class _Compiler:
    """A process that reads ``module target`` and answers what failed, one line each."""

    def __init__(self) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.aot_apart"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        atexit.register(self._end)

    def ask(self, case_module: str, target: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has crashed; the answer says so
            print(case_module, target, file=self._process.stdin, flush=True)

    def answer(self) -> str:
        """What failed of what was asked; nothing where all is stored."""
        assert self._process.stdout is not None
        if line := self._process.stdout.readline():
            return json.loads(line)
        _compiler.cache_clear()  # the next case file gets new ones
        self._errors.seek(0)
        code = self._process.wait()
        return f"a compiler ended with status {code}:\n{self._errors.read()[-4000:]}"

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.kill()
        self._process.wait()


def serve(asked: Iterator[str], answers: IO[str]) -> None:
    """What a compiler does until nobody asks."""
    from tests.aot import compile_missing

    for line in asked:
        failure = ""
        try:
            compile_missing(*line.split())
        except Exception as error:
            failure = str(error)
        print(json.dumps(failure), file=answers, flush=True)


if __name__ == "__main__":
    with os.fdopen(os.dup(1), "w") as to_test:
        os.dup2(2, 1)  # what compilers print is no answer
        serve(iter(sys.stdin), to_test)
