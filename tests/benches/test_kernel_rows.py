"""The figure rows every kernel area has."""

import sys

import pytest

from benches import dated
from benches.figures import _kernels
from tests.aot import AotReport
from tests.benches.test_matrix import ENVIRONMENT, ROWS


def test_rows_of_a_block():
    rows = list(_kernels.rows("kv", ("K",)))
    assert len({row.claim for row in rows}) == len(rows) == 4
    assert [row.nightly for row in rows] == [False, True, True, False]


def test_lines_are_those_of_the_kernels():
    text = _kernels.file_lines("kv").text
    assert "copy.py" in text or "write" in text or "quantise.py" in text


@pytest.mark.parametrize(("spills", "ok"), [(0, True), (8, False)])
def test_the_gate_counts_what_is_green(monkeypatch, spills, ok):
    seen = []

    def pretend(module, target):
        import importlib

        seen.append((module, target))
        cases = [c for c in importlib.import_module(module).CASES if target in c.targets]
        return {c.name: AotReport(c.name, target, 9, spills, 0, {"X": 1}, ("X",)) for c in cases}

    monkeypatch.setattr(_kernels, "compile_all", pretend)
    found = _kernels.gate("kv")
    assert found.ok is ok
    assert ("tests.kv.aot_cases", "sm_90") in seen
    if ok:
        count = int(found.text.split()[0])
        assert f"{count} instructions claimed and found" in found.text
    else:
        assert found.text.startswith("0 green")
        assert "spills" in found.text


def test_a_kernel_without_a_case_is_short(monkeypatch):
    monkeypatch.setattr(_kernels, "compile_all", lambda module, target: {})
    monkeypatch.setattr(_kernels, "uncovered", lambda cases, only_on: ["blocks.kv.x:y on sm_80"])
    found = _kernels.gate("kv")
    assert not found.ok
    assert "1 missing: blocks.kv.x:y on sm_80" in found.text


def test_the_floor_needs_an_interpreter(monkeypatch, tmp_path):
    monkeypatch.delenv("FLOOR", raising=False)
    assert _kernels.floor("kv").ok is None
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho noise\necho 'True|12 green; torch 2.11, triton 3.6'\n")
    script.chmod(0o755)
    monkeypatch.setenv("FLOOR", str(script))
    found = _kernels.floor("kv")
    assert (found.ok, found.text) == (True, "12 green; torch 2.11, triton 3.6")
    script.write_text(f"#!{sys.executable}\nraise SystemExit('no triton here')\n")
    with pytest.raises(RuntimeError, match="no triton here"):
        _kernels.floor("kv")


def test_the_matrix_is_not_measured_without_an_accelerator(monkeypatch, tmp_path):
    monkeypatch.setattr(dated, "FOLDER", tmp_path)
    count = sum(row_id.startswith("K") for row_id in ROWS)
    found = _kernels.matrix(("K",))
    assert found.ok is None
    assert found.text.startswith(f"not measured: 0 of {count} run")
    file = dated.open_file(ENVIRONMENT)
    file.put("matrix", "K2-copy", {"status": "stage 1", "value": 90.0})
    file.put("matrix", "K1-128", {"status": "failed", "reason": "x"})
    found = _kernels.matrix(("K",))
    assert not found.ok
    assert found.text == f"1 of {count}, 1 run (NVIDIA H200, 2026-11-21)"
