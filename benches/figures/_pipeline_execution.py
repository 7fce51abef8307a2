"""Figures of execution: equal bits, random programs, reports, the cost of following a schedule."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benches.figures.row import Measured, Row

COMMAND = "python -m benches.figures --area pipeline"


def rows() -> Iterator[Row]:
    for dtype in ("float32", "float64"):
        claim = (
            f"gradients bit-equal to one process with the same slices, {dtype}: 13 families, "
            "P = 1, 2, 4, uneven stages, tied, packed, windowed, a stage recomputed"
        )
        yield Row(claim, "all", COMMAND, _matrix(dtype))
    yield Row("100 AdamW steps of a pipeline bit-equal to one process", "all", COMMAND, _training)
    for dtype, limit in (("float64", 1e-13), ("float32", 5e-6)):
        claim = f"gradients of 5 slices against the whole sequence, {dtype}, worst tensor"
        yield Row(claim, f"<= {limit:.0e}", COMMAND, _rounding(dtype, limit))
    yield _programs(300, nightly=False)
    yield _programs(10_000, nightly=True)
    claim = "random programs on 4 gloo processes under random delays, P <= 4, bit-equal"
    yield Row(claim, "200 of 200", COMMAND + " --nightly", _gloo_programs, nightly=True)
    claim = "a rank that stands still is reported with both ranks' actions, gloo, by default"
    yield Row(claim, "<= 5 s", COMMAND + " --nightly", _report, nightly=True)
    claim = "executor's own CPU time per action, sends and receives counted, 4 ranks as threads"
    yield Row(claim, "", COMMAND, _own_time)
    claim = "share of it in busy time: d=512, 2 layers, T=2048, 4 slices"
    yield Row(claim, "<= 1 %", COMMAND, _share)


def _apart(code: str) -> str:
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return run.stdout.strip().rpartition("\n")[2]


def _matrix(dtype: str) -> Callable[[], Measured]:
    def measure() -> Measured:
        from tests.pipeline.matrix import CASES

        code = "import torch; from tests.pipeline.matrix import CASES, run; "
        wrong = _apart(f"{code}print(len(run(torch.{dtype}, True, CASES)))")
        return Measured(f"{len(CASES) - int(wrong)} of {len(CASES)}", wrong == "0")

    return measure


def _training() -> Measured:
    found = _apart("from tests.pipeline.training import differing; print(differing(100))")
    return Measured("all parameters and losses" if found == "[]" else found, found == "[]")


def _rounding(dtype: str, limit: float) -> Callable[[], Measured]:
    def measure() -> Measured:
        code = "import torch; from tests.pipeline.running import worst_rounding; "
        worst = float(_apart(f"{code}print(worst_rounding(torch.{dtype}))"))
        return Measured(f"{worst:.1e}", worst <= limit)

    return measure


def _programs(count: int, nightly: bool) -> Row:
    def measure() -> Measured:
        began = time.monotonic()
        code = "from tests.pipeline.tiny_programs import run_many; "
        wrong = _apart(f"{code}print(len(run_many(1000, {count})))")
        seconds = time.monotonic() - began
        return Measured(f"{count - int(wrong):,} of {count:,}, {seconds:.0f} s", wrong == "0")

    claim = "random programs in process under random delays, P <= 4, no hang, bit-equal"
    command = COMMAND + " --nightly" * nightly
    return Row(claim, f"{count:,} of {count:,}", command, measure, nightly=nightly)


def _gloo_programs() -> Measured:
    from tests.pipeline.test_gloo import run_workers

    with tempfile.TemporaryDirectory() as path:
        found = run_workers(Path(path), 4, "random_programs", 4, 500, 200, timeout_s=3000)
    ok = found == ["wrong: []"] * 4
    return Measured("200 of 200" if ok else str(found), ok)


def _report() -> Measured:
    from tests.pipeline.test_gloo import run_workers

    with tempfile.TemporaryDirectory() as path:
        found = run_workers(Path(path), 3, "first_report", timeout_s=300)
    seconds = min(float(text) for text in found if text)
    return Measured(f"{seconds:.1f} s", seconds <= 5)


def _own_time() -> Measured:
    code = "from benches.bench_pipeline import own_us_per_action; print(own_us_per_action())"
    return Measured(f"{float(_apart(code)):.0f} us", None)


def _share() -> Measured:
    code = "from benches.bench_pipeline import own_share; print(own_share())"
    share = float(_apart(code))
    return Measured(f"{share:.2%}", share <= 0.01)
