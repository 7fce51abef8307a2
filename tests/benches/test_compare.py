"""Two results files side by side: what counts as a change, how files are found, what is printed."""

import json

import pytest

from benches import compare, results
from tests.benches.saved import ENVIRONMENT, save_pytest, timing


@pytest.fixture
def files(tmp_path):
    before = save_pytest(tmp_path / "a.json", {"x": 1e-3, "y": 2e-3, "z": 3e-3, "gone": 1.0})
    after = save_pytest(
        tmp_path / "b.json", {"x": 1.2e-3, "y": 1e-3, "z": 3.02e-3, "new": 1.0}, commit="def5678"
    )
    return str(before), str(after)


def test_slower_and_faster_are_told_from_noise(files, capsys):
    assert compare.main(list(files)) == 1
    shown = capsys.readouterr().out
    assert "| ops::bench_x | 1 ms | 1.2 ms | 1.20 (1.18-1.22) | slower |" in shown
    assert "| ops::bench_y | 2 ms | 1 ms | 0.50 (0.49-0.51) | faster |" in shown
    assert "| ops::bench_z | 3 ms | 3.02 ms | 1.01 (0.99-1.03) |  |" in shown
    assert shown.index("bench_x") < shown.index("bench_z") < shown.index("bench_y")
    assert "3 compared: 1 slower, 1 faster; geometric mean of the ratios 0.845" in shown
    assert "only before: ops::bench_gone" in shown
    assert "only after: ops::bench_new" in shown
    assert "before: abc1234, NVIDIA H200, 2026-11-21" in shown


def test_spreads_that_overlap_are_no_change(tmp_path):
    before = save_pytest(tmp_path / "a.json", {"x": 1.0}, spread=0.2)
    after = save_pytest(tmp_path / "b.json", {"x": 1.3}, spread=0.2)
    assert compare.main([str(before), str(after)]) == 0
    after = save_pytest(tmp_path / "b.json", {"x": 1.6}, spread=0.2)
    assert compare.main([str(before), str(after)]) == 1
    assert compare.main([str(before), str(after), "--threshold", "70"]) == 0
    assert compare.main([str(before), str(after), "--only", "nothing"]) == 0


def test_kernel_time_is_compared_where_there_is_one(tmp_path):
    times = {"ours": {"wall": timing(9.0), "kernel": timing(2.0), "note": ""}}
    path = save_pytest(tmp_path / "a.json", {"x": 9.0}, timings=times)
    assert results.load(path).entries["ops::bench_x"].median_s == 2.0


def test_the_dated_file_is_read(tmp_path):
    path = tmp_path / "dated.json"
    times = {"ours": {"wall": timing(9.0), "kernel": None, "note": ""}}
    bench = results.bench_items(json.loads(save_pytest(tmp_path / "a", {"x": 1.0}).read_text()))
    rows = {"D1": {"times": times, "info": {"flops": 3}}, "D2": {"status": "not measured"}}
    parts = {"benches": bench, "matrix": rows, "tests": {}}
    path.write_text(
        json.dumps({"environment": {**ENVIRONMENT, "commit": "c0ffee1"}, "parts": parts})
    )
    found = results.load(path)
    assert sorted(found.entries) == ["matrix::D1", "ops::bench_x"]
    assert found.entries["matrix::D1"].median_s == 9.0
    assert found.entries["matrix::D1"].info == {"flops": 3}
    assert found.entries["ops::bench_x"].p90_s == pytest.approx(1.01)


def test_results_are_found_by_commit(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "FOLDERS", (tmp_path,))
    (tmp_path / "sub").mkdir()
    path = save_pytest(tmp_path / "sub" / "0001.json", {"x": 1.0}, commit="abc1234-dirty")
    (tmp_path / "other.json").write_text("{}")
    assert results.find("abc1234") == path
    for what in ("abc", "fffffff", "no/such.json"):
        with pytest.raises(ValueError, match="expected a results file or a commit"):
            results.find(what)
    with pytest.raises(SystemExit):
        compare.main(["fffffff", "abc1234"])
    assert "benchmark-autosave" in capsys.readouterr().err


def test_other_files_are_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match="expected benchmark results, got keys"):
        results.load(tmp_path / "x.json")


def test_another_device_is_pointed_out(tmp_path, capsys):
    before = save_pytest(tmp_path / "a.json", {"x": 1.0})
    after = save_pytest(tmp_path / "b.json", {"x": 1.0}, device="H100", triton="3.7")
    compare.main([str(before), str(after)])
    assert "another device and triton" in capsys.readouterr().out
