"""Rows measured one after another in a process of their own, which may die without the others.

The process is asked for one row at a time and answers with one line of JSON. A row that breaks the
accelerator's context, or takes too long, costs that process and nothing else: the next row gets a
fresh one.
"""

import dataclasses
import json
import math
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from benches.matrix.row import Measurement, NotBuilt, Row, Setting

MARK = "@row "
"""Begins the lines that answer; whatever else is printed is passed on."""


def measured(row: Row, setting: Setting) -> dict[str, Any]:
    """Run a row; its figure and verdict, or why there is none."""
    try:
        found = row.measure(setting)
    except NotBuilt as error:
        return {"status": "not measured", "reason": str(error)}
    except Exception as error:
        if setting.tiny and "got 'triton'" in str(error):
            return {"status": "not measured", "reason": f"the kernel is not built yet: {error}"}
        said = str(error).splitlines() or [""]
        return {"status": "failed", "reason": f"{type(error).__name__}: {said[0]}"[:300]}
    return as_item(row, found, tiny=setting.tiny)


def as_item(row: Row, found: Measurement, *, tiny: bool = False) -> dict[str, Any]:
    """A measurement as it is saved."""
    if not math.isfinite(found.value) or found.value <= 0:
        return {"status": "failed", "reason": f"measured {found.value} {row.unit}"}
    if tiny:
        ran = ", ".join(name for name in found.times if name != "ours")
        return {"status": "runs", "reason": f"beside {ran}" if ran else "alone"}
    return {
        "status": row.verdict(found.value),
        "value": found.value,
        "unit": row.unit,
        "ratios": {name: round(ratio, 3) for name, ratio in found.ratios.items()},
        "missing": dict(found.missing),
        "times": {name: dataclasses.asdict(times) for name, times in found.times.items()},
        "info": dict(found.info),
    }


def serve(rows: Iterable[Row], setting: Setting) -> None:
    """Answer row ids from standard input, a line each."""
    known = {row.id: row for row in rows}
    for line in sys.stdin:
        item = measured(known[line.strip()], setting)
        print(MARK + json.dumps(item), flush=True)
        if "CUDA error" in item.get("reason", ""):
            return  # the context is gone; whoever asked starts another process


class Worker:
    """The process that measures."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.waiting = b""

    def ask(self, row_id: str, limit_s: float) -> dict[str, Any]:
        """The answer for a row; a death or an overrun is an answer too, and closes the process."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{row_id}\n".encode())
        except BrokenPipeError:
            return self._gone("its process ended")
        until = time.monotonic() + limit_s
        while (left := until - time.monotonic()) > 0:
            for line in self._lines(left):
                if line.startswith(MARK):
                    return json.loads(line.removeprefix(MARK))
                print(line, flush=True)
            if self.process.poll() is not None:
                return self._gone(f"its process ended with status {self.process.returncode}")
        return self._gone(f"took more than {limit_s:.0f} s")

    def _lines(self, wait_s: float) -> Iterator[str]:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if selector.select(min(wait_s, 1.0)):
                self.waiting += os.read(self.process.stdout.fileno(), 1 << 16)
        *lines, self.waiting = self.waiting.split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)

    def _gone(self, why: str) -> dict[str, Any]:
        self.close()
        return {"status": "failed", "reason": why}

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


def measure_all(
    ids: list[str],
    command: list[str],
    *,
    budget_s: float,
    limit_s: float,
    keep: Callable[[str, dict[str, Any]], None],
) -> None:
    """Measure rows in order, handing over each as it comes, also those there is no time for."""
    until = time.monotonic() + budget_s
    worker: Worker | None = None
    for row_id in ids:
        left = until - time.monotonic()
        if left < 5:
            keep(row_id, {"status": "not measured", "reason": "no time left; run again to go on"})
            continue
        if worker is None or not worker.alive:
            if worker is not None:
                worker.close()
            worker = Worker(command)
        keep(row_id, worker.ask(row_id, min(limit_s, left)))
    if worker is not None:
        worker.close()
