"""Pipelines of real processes over gloo: bits under delays, and ranks that stand still."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def run_workers(path: Path, size: int, work: str, *arguments: Any, timeout_s: float) -> list[str]:
    """The last line every process wrote."""
    processes = []
    try:
        for rank in range(size):
            settings = {"rank": rank, "size": size, "store": str(path / "store")}
            settings |= {"work": work, "arguments": arguments}
            command = [sys.executable, "-m", "tests.pipeline.gloo_worker", json.dumps(settings)]
            pipe = subprocess.PIPE
            processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
        found = []
        for process in processes:
            out, err = process.communicate(timeout=timeout_s)
            assert process.returncode == 0, err
            found.append(out.strip().rpartition("\n")[2])
        return found
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_8_random_programs(tmp_path: Path) -> None:
    found = run_workers(tmp_path, 3, "random_programs", 3, 50, 8, timeout_s=200)
    assert found == ["wrong: []"] * 3


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_200_random_programs(tmp_path: Path) -> None:
    found = run_workers(tmp_path, 4, "random_programs", 4, 500, 200, timeout_s=1700)
    assert found == ["wrong: []"] * 4


def test_an_interrupted_rank_ends_both(tmp_path: Path) -> None:
    found = run_workers(tmp_path, 2, "interrupted", timeout_s=200)
    assert found[1] == "KeyboardInterrupt()"
    assert "rank 1 failed: KeyboardInterrupt()" in found[0], found


def test_a_stuck_rank_is_named(tmp_path: Path) -> None:
    found = [json.loads(text) for text in run_workers(tmp_path, 3, "stuck", 6, 60, timeout_s=200)]
    named = (
        r"rank (0|2) waits for R[FB]\d>\d\(\d,\d\) from rank 1, which is at BW?\d\(\d,\d\) since"
    )
    reports = found[0]["reports"] + found[2]["reports"]
    assert any(re.match(named, report) for report in reports), found
    assert any(re.match(named, found[rank]["error"]) for rank in (0, 2)), found
    assert all(result["seconds"] < 60 for result in found), found
