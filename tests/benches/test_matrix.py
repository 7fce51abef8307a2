"""The matrix: its rows, that their code runs, what becomes of a row that breaks, and the table."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from benches import dated
from benches.machine import Times, Timing
from benches.matrix import rows, table
from benches.matrix.row import Measurement, NotBuilt, Row, Setting, operation
from benches.matrix.run import Worker, as_item, measure_all, measured

TINY = Setting(torch.device("cpu"), tiny=True)
ROWS = {row.id: row for row in rows()}
FIRST = {row_id.partition("-")[0]: row_id for row_id in reversed(ROWS)}
"""The first row of each family: the others run the same code at other shapes."""


def test_every_family_of_the_plan_is_there():
    families = "D1 D2 D3 D4 D5 D6 D7 D8 D9 P1 P2 P3 P4 T1 T2 N1 N2 N3 N4 L1 L2 K1 K2 S1 M1 G1 O1 H1"
    assert set(families.split()) <= set(FIRST)
    assert len(ROWS) == len(list(rows())), "two rows share an id"


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_the_second_stage_is_the_harder(row):
    assert row.reaches(row.stage2, row.stage1)
    assert not row.reaches(row.stage1, row.stage2)


@pytest.mark.parametrize("row_id", FIRST.values())
def test_a_row_runs_at_small_shapes(row_id):
    item = measured(ROWS[row_id], TINY)
    assert item["status"] in ("runs", "not measured"), item["reason"]
    if item["status"] == "not measured":
        assert "is not built yet" in item["reason"]


@pytest.mark.nightly
@pytest.mark.parametrize("row_id", sorted(set(ROWS) - set(FIRST.values())))
def test_the_other_rows_run_too(row_id):
    assert measured(ROWS[row_id], TINY)["status"] == "runs"


def made_up(value: float = 91.3, unit: str = "% copy", **peers: float) -> tuple[Row, Measurement]:
    row = Row("X1", "a kernel", unit, 90.0, 97.0, lambda setting: found, {"them": 1.2})
    times = {name: Times(Timing(s, s, s, 5)) for name, s in {"ours": 1.0, **peers}.items()}
    found = Measurement(value, times, {"them too": "not installed"}, {"flops": 1})
    return row, found


def test_a_measurement_is_judged_and_shown():
    row, found = made_up(them=1.5, others=0.5)
    item = as_item(row, found)
    assert item["status"] == "stage 1"
    assert item["ratios"] == {"them": 1.5, "others": 0.5}
    assert json.loads(json.dumps(item)) == item
    assert table.line(row, item) == (
        "| X1 | a kernel | 91% copy | >= 90% copy | >= 97% copy | stage 1 "
        "| them 1.50 (>= 1.2); others 0.50 |"
    )
    assert as_item(*made_up(98.0))["status"] == "stage 2"
    assert as_item(*made_up(50.0))["status"] == "short"
    missing = table.line(row, as_item(*made_up()))
    assert missing.endswith("| them: not installed |")


def test_less_is_better_for_times():
    row = dataclasses.replace(made_up()[0], unit="us", stage1=10.0, stage2=7.5)
    assert [row.verdict(v) for v in (7.5, 9.0, 11.0)] == ["stage 2", "stage 1", "short"]
    assert "| <= 10 us | <= 7.5 us |" in table.line(row, table.NO_DEVICE)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_no_figure_comes_from_a_broken_clock(value):
    assert as_item(*made_up(value))["status"] == "failed"


def test_errors_become_reasons():
    def broken(setting):
        raise AssertionError("result: relative RMS error 1e+0\nmore")

    row = dataclasses.replace(made_up()[0], measure=broken)
    found = measured(row, TINY)
    assert found == {
        "status": "failed",
        "reason": "AssertionError: result: relative RMS error 1e+0",
    }
    with pytest.raises(NotBuilt, match=r"blocks.attention.no_such_thing is not built yet"):
        operation("attention.no_such_thing")


PRETENDER = """
import json, os, sys, time
for line in sys.stdin:
    name = line.strip()
    print("compiling", name, flush=True)
    if name == "dies": os._exit(9)
    if name == "hangs": time.sleep(60)
    print("@row " + json.dumps({"status": "short", "value": os.getpid()}), flush=True)
"""


def test_rows_that_die_or_hang_do_not_take_others_along(tmp_path: Path, capfd):
    script = tmp_path / "pretender.py"
    script.write_text(PRETENDER)
    found: dict[str, dict] = {}
    measure_all(
        ["a", "b", "dies", "c", "hangs", "d"],
        [sys.executable, str(script)],
        budget_s=60,
        limit_s=2,
        keep=found.__setitem__,
    )
    assert list(found) == ["a", "b", "dies", "c", "hangs", "d"]
    assert found["dies"] == {"status": "failed", "reason": "its process ended with status 9"}
    assert found["hangs"] == {"status": "failed", "reason": "took more than 2 s"}
    assert found["a"]["value"] == found["b"]["value"], "rows share a process while it lives"
    assert len({found[n]["value"] for n in "acd"}) == 3
    assert "compiling a" in capfd.readouterr().out


def test_what_there_is_no_time_for_is_said():
    found: dict[str, dict] = {}
    measure_all(["a"], ["false"], budget_s=1, limit_s=1, keep=found.__setitem__)
    assert found["a"]["status"] == "not measured"
    assert "run again" in found["a"]["reason"]


def test_the_worker_measures_rows():
    worker = Worker([sys.executable, "-m", "benches.matrix", "--serve", "--tiny", "--only", "H1"])
    try:
        assert worker.ask("H1", 60) == {"status": "runs", "reason": "alone"}
    finally:
        worker.close()
    assert not worker.alive


ENVIRONMENT = {
    "device": "NVIDIA H200",
    "driver": "580",
    "torch": "2.11",
    "triton": "3.6",
    "commit": "abc1234",
    "date": "2026-11-21",
}


def test_the_dated_file_is_added_to_and_never_mixes_commits(tmp_path, monkeypatch):
    monkeypatch.setattr(dated, "FOLDER", tmp_path)
    dated.open_file(ENVIRONMENT).put("matrix", "D1", {"status": "short", "value": 1.0})
    again = dated.open_file(ENVIRONMENT)
    again.put("tests", "gpu/a", {"passed": 3, "failed": 1, "skipped": 0})
    (path,) = tmp_path.glob("*.json")
    assert path.name == "2026-11-21-nvidia-h200.json"
    assert set(json.loads(path.read_text())["parts"]) == {"matrix", "tests"}
    assert dated.open_file({**ENVIRONMENT, "commit": "def5678"}).part("matrix") == {}


def test_the_readme_table_is_written_from_the_newest_file(tmp_path, monkeypatch):
    monkeypatch.setattr(dated, "FOLDER", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results:gpu -->\nold\n<!-- /results:gpu -->\nafter\n")
    dated.write_readme(readme)
    assert "Nothing measured yet" in readme.read_text()
    item = as_item(*made_up(95.0, flashinfer=1.3))
    file = dated.open_file(ENVIRONMENT)
    file.put("matrix", "D1", item)
    file.put("tests", "gpu/a", {"passed": 3, "failed": 1, "skipped": 0})
    for _ in range(2):
        dated.write_readme(readme)
    text = readme.read_text()
    assert text.startswith("before\n<!-- results:gpu -->\n| row |")
    assert text.endswith("<!-- /results:gpu -->\nafter\n")
    assert "| 95% copy | >= 90% copy | >= 97% copy | stage 1 | flashinfer 1.30 (>= 1);" in text
    assert "| not measured: not run yet |" in text
    assert "NVIDIA H200, driver 580, torch 2.11, triton 3.6, commit abc1234, 2026-11-21." in text
    assert "Tests on the device: 3 passed, 1 failed." in text
    (tmp_path / "other.md").write_text("no marks")
    with pytest.raises(ValueError, match="expected the marks"):
        dated.write_readme(tmp_path / "other.md")


def test_the_readme_lists_every_row():
    text = dated.README.read_text()
    shown = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert [row_id for row_id in shown if row_id in ROWS] == list(ROWS)
