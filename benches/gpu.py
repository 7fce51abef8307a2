"""Everything that needs an accelerator: its tests, the kernel benches, the matrix, one file of it.

    make gpu                               # in an environment of its own
    make gpu RUN=python3 PART=matrix       # with the given interpreter, one part of it
    python -m benches.gpu --part tests --budget 300

Each part ends within its budget, and what it had found by then is kept: the results file in
``benches/results`` is written after every test file, bench file and matrix row. Run again to go on.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import torch

from benches import dated, machine
from benches.results import ROOT, bench_items

BUDGET_S = 570
"""Seconds for one part, unless asked otherwise: a call of one part ends within ten minutes."""
NOT_KERNELS = ("bench_model.py", "bench_sched.py", "bench_serve.py")
PYTEST = [sys.executable, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider"]


def test_files() -> list[Path]:
    """Test files that hold tests for an accelerator."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [path for path in files if "pytest.mark.gpu" in path.read_text()]


def bench_files() -> list[Path]:
    """Bench files of kernels."""
    return [p for p in sorted((ROOT / "benches").glob("bench_*.py")) if p.name not in NOT_KERNELS]


def read_junit(path: Path) -> dict[str, Any]:
    """Counts of a pytest run, the failures by name, and figures that tests recorded."""
    cases = list(ET.parse(path).getroot().iter("testcase"))
    failures: dict[str, str] = {}
    recorded: dict[str, float] = {}
    skipped = 0
    for case in cases:
        name = case.get("name", "")
        for wrong in [*case.findall("failure"), *case.findall("error")]:
            failures[name] = (wrong.get("message") or "").splitlines()[0][:300]
        skipped += len(case.findall("skipped"))
        for found in case.iter("property"):
            recorded[f"{name} {found.get('name')}"] = float(found.get("value") or "nan")
    passed = len(cases) - len(failures) - skipped
    counts = {"passed": passed, "failed": len(failures), "skipped": skipped}
    return {**counts, "failures": failures, "recorded": recorded}


def run_within(command: list[str], limit_s: float) -> str:
    """Run a command; empty when it ended by itself, else that it was stopped."""
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return f"stopped after {limit_s:.0f} s"
    return ""


def run_tests(results: dated.Dated, until: float) -> None:
    """Run the tests file by file, so that a broken device context costs one file."""
    for path in test_files():
        name = str(path.relative_to(ROOT / "tests"))
        left = until - time.monotonic()
        if left < 10:
            _put_unrun(results, "tests", name)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            found = Path(scratch) / "junit.xml"
            options = ["-m", "gpu", "--timeout", "120", f"--junitxml={found}"]
            stopped = run_within([*PYTEST, str(path), *options], left)
            if found.exists():
                results.put("tests", name, read_junit(found))
            else:
                why = stopped or "ended without a report"
                item = {"passed": 0, "failed": 1, "skipped": 0, "failures": {name: why}}
                results.put("tests", name, item)


def _put_unrun(results: dated.Dated, part: str, name: str) -> None:
    if name not in results.part(part):
        nothing = {"passed": 0, "failed": 0, "skipped": 0, "failures": {name: "no time left"}}
        results.put(part, name, nothing)


def run_benches(results: dated.Dated, until: float) -> None:
    """Run the kernel benches file by file; what is measured again replaces what was there."""
    done = {name.partition("::")[0] for name in results.part("benches")}
    files = sorted(bench_files(), key=lambda p: p.stem.removeprefix("bench_") in done)
    for path in files:
        left = until - time.monotonic()
        if left < 20:
            print(f"{path.name}: no time left; run again to go on", flush=True)
            continue
        with tempfile.TemporaryDirectory() as scratch:
            found = Path(scratch) / "benches.json"
            options = ["--benchmark-enable", f"--benchmark-json={found}", "--benchmark-quiet"]
            stopped = run_within([*PYTEST, str(path), *options], left)
            if found.exists() and found.stat().st_size:
                for name, item in bench_items(json.loads(found.read_text())).items():
                    results.put("benches", name, item)
            else:
                print(f"{path.name}: {stopped or 'nothing measured'}", flush=True)


def run_matrix(until: float) -> None:
    """Measure the rows this day's file does not hold yet; they are added to it one by one."""
    budget = max(1.0, until - time.monotonic() - 10)
    command = [sys.executable, "-m", "benches.matrix", "--budget", f"{budget:.0f}"]
    run_within(command, budget + 5)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benches.gpu", description="Test and measure.")
    parser.add_argument("--part", choices=("all", *dated.PARTS), default="all")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for each part")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            f"no accelerator found: torch {torch.__version__} sees none "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); "
            "nothing was run. `make test` runs the kernels in the interpreter and compiles them "
            "ahead of time, `python -m benches.matrix` lists what would be measured",
            file=sys.stderr,
        )
        return 2
    results = dated.open_file(machine.environment())
    for part in dated.PARTS if options.part == "all" else (options.part,):
        until = time.monotonic() + options.budget
        print(f"== {part}, at most {options.budget:.0f} s", flush=True)
        if part == "matrix":
            run_matrix(until)
            results = dated.open_file(machine.environment())
        else:
            (run_tests if part == "tests" else run_benches)(results, until)
    table = "\n".join(dated.markdown(results.content)) + "\n"
    results.path.with_suffix(".md").write_text(table)
    dated.write_readme()
    print(f"\n{table}\nwrote {results.path.relative_to(ROOT)}, its .md and benches/README.md")
    return int(failed(results.content["parts"]))


def failed(parts: dict[str, Any]) -> bool:
    """Whether a test failed or a row broke; a row short of its target is a result."""
    tests = any(item["failures"] for item in parts.get("tests", {}).values())
    return tests or any(i["status"] == "failed" for i in parts.get("matrix", {}).values())


if __name__ == "__main__":
    sys.exit(main())
