"""Rows every kernel area has: its files, the ahead-of-time gate, the oldest versions, a matrix."""

import functools
import importlib
import os
import statistics
import subprocess
from collections.abc import Iterator

from benches import dated
from benches.figures.row import Measured, Row
from tests.aot import ROOT, TARGETS, case_modules, check_report, compile_all
from tests.aot_coverage import kernels, uncovered

FLOOR = "torch 2.11 and triton 3.6"
"""The oldest versions the kernels must compile with."""


def rows(block: str, families: tuple[str, ...]) -> Iterator[Row]:
    """Rows of one block; ``families`` begin the ids of its matrix rows."""
    command = f"make figures AREA={block}"
    yield Row(
        "lines of a file of Triton kernels: median, longest",
        "median <= 110",
        command,
        functools.partial(file_lines, block),
    )
    yield Row(
        "kernels x choices x chips compiled ahead of time: no spills, shared memory, claims",
        "all, and every kernel on every chip",
        f"python -m tests.aot tests.{block}.aot_cases",
        functools.partial(gate, block),
        nightly=True,
    )
    yield Row(
        f"the same with {FLOOR}",
        "all",
        f"FLOOR=path/to/python {command} NIGHTLY=1",
        functools.partial(floor, block),
        nightly=True,
    )
    yield Row(
        "rows of the accelerator matrix at stage 1 or better",
        "all",
        "make gpu PART=matrix",
        functools.partial(matrix, families),
    )


def file_lines(block: str) -> Measured:
    files = [p for p in (ROOT / "blocks" / block / "_triton").glob("*.py") if p.stem != "__init__"]
    counts = {path.name: len(path.read_text().splitlines()) for path in files}
    longest = max(counts, key=lambda name: counts[name])
    median = statistics.median(counts.values())
    text = f"{median:.0f} over {len(counts)} files; {longest} {counts[longest]}"
    return Measured(text, median <= 110)


def modules_of(block: str) -> list[str]:
    return [module for module in case_modules() if module.split(".")[1] == block]


def gate(block: str) -> Measured:
    """Compile what is not stored yet, and check every report."""
    green: set[tuple[str, str, str]] = set()
    claims, bad = 0, []
    cases = [case for m in modules_of(block) for case in importlib.import_module(m).CASES]
    kernel_of = {(case.name, target): case.kernel for case in cases for target in case.targets}
    for module in modules_of(block):
        for target in TARGETS:
            for report in compile_all(module, target).values():
                try:
                    check_report(report)
                except AssertionError as error:
                    bad.append(str(error))
                    continue
                key = (kernel_of[report.name, target], report.name, target)
                claims += len(report.claims) * (key not in green)
                green.add(key)
    only_on: dict[str, tuple[str, ...]] = {}
    for module in modules_of(block):
        only_on |= getattr(importlib.import_module(module), "ONLY_ON", {})
    prefix = f"blocks.{block}."
    missing = [k for k in uncovered(cases, only_on=only_on) if k.startswith(prefix)]
    known = sum(kernel.startswith(prefix) for kernel in kernels())
    text = f"{len(green)} green of {known} kernels, {claims} instructions claimed and found"
    if bad or missing:
        text += f"; {len(bad)} fail, {len(missing)} missing: {[*bad, *missing][0][:80]}"
    return Measured(text, not bad and not missing)


def floor(block: str) -> Measured:
    """The gate in another interpreter, named by ``$FLOOR``."""
    python = os.environ.get("FLOOR")
    if not python:
        return Measured("not measured: FLOOR names no interpreter", None)
    code = (
        "import torch, triton; from benches.figures import _kernels; "
        f"found = _kernels.gate({block!r}); "
        "print(f'{found.ok}|{found.text}; torch {torch.__version__}, triton {triton.__version__}')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [python, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    ok, _, text = done.stdout.strip().splitlines()[-1].partition("|")
    return Measured(text, ok == "True")


def matrix(families: tuple[str, ...]) -> Measured:
    """From the newest results file."""
    from benches.matrix import rows as matrix_rows

    wanted = [row.id for row in matrix_rows() if row.id.startswith(families)]
    content = dated.newest()
    items = content["parts"].get("matrix", {}) if content else {}
    run = [items[row_id] for row_id in wanted if "value" in items.get(row_id, {})]
    reached = sum(item["status"] in ("stage 1", "stage 2") for item in run)
    if content is None or not run:
        return Measured(f"not measured: 0 of {len(wanted)} run; no accelerator was at hand", None)
    where = content["environment"]
    text = f"{reached} of {len(wanted)}, {len(run)} run ({where['device']}, {where['date']})"
    return Measured(text, reached == len(wanted))
