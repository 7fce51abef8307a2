"""`make gpu`: what it collects, that it ends in time, keeps what it has, and needs a device."""

import json
import os
import subprocess
import sys
import time

import pytest

from benches import dated, gpu
from tests.benches.test_matrix import ENVIRONMENT

NO_DEVICE = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.parametrize("command", ["-m benches.gpu", "make gpu"])
def test_without_an_accelerator_it_says_so_and_fails(command):
    run = [sys.executable, *command.split()]
    if command == "make gpu":
        run = ["make", "gpu", f"RUN={sys.executable}", "PART=matrix"]
    done = subprocess.run(run, cwd=gpu.ROOT, env=NO_DEVICE, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no accelerator found" in done.stderr


def test_files_are_found_by_what_they_hold():
    names = {path.name for path in gpu.test_files()}
    assert {"test_operations.py", "test_machine.py"} <= names
    assert "test_compare.py" not in names
    benches = {path.name for path in gpu.bench_files()}
    assert {"bench_attention.py", "bench_ops.py", "bench_kv.py"} <= benches
    assert not benches & set(gpu.NOT_KERNELS)


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(dated, "FOLDER", tmp_path)
    return dated.open_file(ENVIRONMENT)


TESTS = """
import os, time, pytest
pytestmark = pytest.mark.gpu
def test_right(record_property): record_property("launch_us", 7.5)
def test_wrong(): assert 1 == 2, "one is not two"
@pytest.mark.parametrize("n", [1, 2])
def test_more(n): pass
"""


def planted(tmp_path, monkeypatch, files: dict[str, str]) -> None:
    (tmp_path / "tests").mkdir()
    paths = []
    for name, text in files.items():
        paths.append(tmp_path / "tests" / name)
        paths[-1].write_text(text)
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # under it nothing is timed
    monkeypatch.setattr(gpu, "test_files", lambda: paths)
    ini = ("markers=gpu", "python_functions=test_* bench_*")
    monkeypatch.setattr(gpu, "PYTEST", [*gpu.PYTEST, *(f"--override-ini={i}" for i in ini)])


def test_tests_are_counted_and_failures_named(tmp_path, monkeypatch, results):
    files = {"test_a.py": TESTS, "test_b.py": "import os\nos._exit(3)\n#pytest.mark.gpu"}
    planted(tmp_path, monkeypatch, files)
    gpu.run_tests(results, time.monotonic() + 100)
    found = results.part("tests")
    assert {k: found["test_a.py"][k] for k in ("passed", "failed", "skipped")} == {
        "passed": 3,
        "failed": 1,
        "skipped": 0,
    }
    assert "one is not two" in found["test_a.py"]["failures"]["test_wrong"]
    assert found["test_a.py"]["recorded"] == {"test_right launch_us": 7.5}
    assert found["test_b.py"]["failures"] == {"test_b.py": "ended without a report"}
    assert json.loads(results.path.read_text())["parts"]["tests"] == found
    assert gpu.failed(results.content["parts"])


def test_a_part_ends_in_its_time(tmp_path, monkeypatch, results):
    slow = "import time, pytest\n@pytest.mark.gpu\ndef test_slow(): time.sleep(60)"
    planted(tmp_path, monkeypatch, {"test_a.py": slow, "test_b.py": slow})
    start = time.monotonic()
    gpu.run_tests(results, start + 11)
    assert time.monotonic() - start < 20
    found = results.part("tests")
    assert found["test_a.py"]["failures"]["test_a.py"].startswith("stopped after")
    assert found["test_b.py"]["failures"] == {"test_b.py": "no time left"}


BENCH = "def bench_sum(benchmark): benchmark(sum, [1, 2])\n"


def test_benches_are_kept_file_by_file(tmp_path, monkeypatch, results):
    planted(tmp_path, monkeypatch, {})
    first, broken = tmp_path / "bench_a.py", tmp_path / "bench_b.py"
    first.write_text(BENCH)
    broken.write_text("import os\nos._exit(3)")
    monkeypatch.setattr(gpu, "bench_files", lambda: [first, broken])
    monkeypatch.setattr(gpu, "PYTEST", [*gpu.PYTEST, "--override-ini=python_files=bench_*.py"])
    gpu.run_benches(results, time.monotonic() + 100)
    ((name, item),) = results.part("benches").items()
    assert name.endswith("a::bench_sum")
    assert item["median_s"] > 0


def test_rows_short_of_a_target_are_no_failure():
    assert not gpu.failed({"matrix": {"D1": {"status": "short"}}, "tests": {}})
    assert gpu.failed({"matrix": {"D1": {"status": "failed"}}})
