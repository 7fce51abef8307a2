"""The tuner: what it tries, what it drops, how it ranks, what it writes."""

import concurrent.futures
import json
import os
import subprocess
import sys

import pytest
import torch

from benches import tune
from blocks.attention import _tiles
from blocks.attention._tiles import Row, Tiles
from tests.aot import AotReport

DECODE = tune.Call("sm_80", "decode", ("bf16", "fp16"), tune.SAME, 128)
PREFILL = tune.Call("sm_90", "prefill", ("bf16", "fp16"), tune.SAME, 128)
GOOD, SPILLS, BIG = Tiles(16, 32, 4, 2), Tiles(16, 64, 4, 2), Tiles(16, 128, 4, 2)


def report(tiles, chip="sm_80", registers=100, *, spills=0, shared_bytes=40_000) -> AotReport:
    return AotReport(str(tiles), chip, registers, spills, shared_bytes)


def one_at_a_time() -> concurrent.futures.Executor:
    return concurrent.futures.ThreadPoolExecutor(1)


@pytest.mark.parametrize("chip", _tiles.CHIPS)
def test_candidates_of_every_row_fit_and_are_tried_once(chip):
    for call in tune.calls(chip, None, None, None):
        tried = tune.candidates(call)
        assert tried
        assert len(tried) == len(set(tried))
        size = _tiles.BYTES[call.dtype[0]]
        for tiles in tried:
            needed = _tiles.shared_estimate(tiles, chip, call.head_dim, size)
            assert needed <= _tiles.shared_limit(chip)


def test_candidates_that_spill_or_ask_too_much_are_dropped(monkeypatch):
    reports = {
        GOOD: report(GOOD),
        SPILLS: report(SPILLS, spills=4),
        BIG: report(BIG, shared_bytes=170_000),
    }
    monkeypatch.setattr(tune, "compile_tiles", lambda call, tiles: [reports[tiles]])
    monkeypatch.setattr(tune, "candidates", lambda call: [SPILLS, BIG, GOOD])
    (row,) = tune.tune(DECODE, one_at_a_time(), 1, 3)
    assert row.tiles == GOOD
    assert row.source.startswith("compile report, triton ")
    assert row.source.endswith("100 registers, 40000 B shared")


def test_one_cache_dtype_that_spills_is_enough(monkeypatch):
    both = [report(GOOD), report(GOOD, spills=8)]
    monkeypatch.setattr(tune, "compile_tiles", lambda call, tiles: both)
    assert tune.survivors(DECODE, [GOOD], one_at_a_time(), 1, 1) == {}


def test_ranking_by_report():
    short, long = Tiles(16, 32, 4, 2), Tiles(16, 64, 4, 2)
    few = report(short, registers=250, shared_bytes=4_000)  # two programs: too little asked for
    many = report(long, shared_bytes=4_000)
    assert tune.merit(DECODE, long, many) > tune.merit(DECODE, short, few)
    two, one = Tiles(128, 64, 8, 3), Tiles(128, 64, 8, 2)
    assert tune.merit(PREFILL, two, report(two, "sm_90", 120)) > tune.merit(
        PREFILL, one, report(one, "sm_90", 200)
    )
    assert tune.resident_programs(two, report(two, "sm_90", 128, shared_bytes=65_536)) == 2
    assert tune.resident_programs(two, report(two, "sm_90", 200, shared_bytes=65_536)) == 1


def test_a_timed_row_says_where_and_when(monkeypatch):
    monkeypatch.setattr(tune.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_tiles, "chip", lambda device: "sm_80")
    here = {"device": "NVIDIA A100", "commit": "abc1234"}
    monkeypatch.setattr(tune.machine, "environment", lambda: here)
    monkeypatch.setattr(tune.machine, "default_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(tune, "time_tiles", lambda call, tried: {GOOD: 3e-6, BIG: 2e-6})
    tiles, source = tune.choose(DECODE, {GOOD: report(GOOD), BIG: report(BIG)})
    assert tiles == BIG
    assert source.startswith("timed on NVIDIA A100, ")
    assert ", abc1234, triton " in source
    assert source.endswith("2.0 us")


def test_writing_replaces_the_same_calls_and_keeps_the_rest(monkeypatch, tmp_path):
    (tmp_path / "sm_80.json").write_text((_tiles.TABLES / "sm_80.json").read_text())
    before = _tiles.table("sm_80")
    monkeypatch.setattr(_tiles, "TABLES", tmp_path)
    _tiles.table.cache_clear()
    new = Row("decode", DECODE.dtype, DECODE.kv_dtype, 128, tune.GROUPS, None, GOOD, "timed on x")
    try:
        tune.write("sm_80", [new])
        after = _tiles.table("sm_80")
    finally:
        monkeypatch.undo()
        _tiles.table.cache_clear()
        _tiles.choose_tiles.cache_clear()
    assert len(after) == len(before)
    assert [b for a, b in zip(before, after, strict=True) if a != b] == [new]


def test_the_command_compiles_and_prints_rows_without_a_device():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benches.tune", "--chip", "gfx942", "--op", "decode"]
    command += ["--dtype", "fp32", "--head-dim", "64", "--jobs", "1", "--keep", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = done.stdout.splitlines()
    row = _tiles.read_row(json.loads(line))
    assert (row.operation, row.head_dim, row.dtype) == ("decode", 64, ("fp32",))
    assert row.source.startswith("compile report")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--jobs", "0"], "--jobs: expected at least 1, got 0"),
        (["--keep", "0"], "--keep: expected at least 1, got 0"),
        (["--head-dim", "77"], "--head-dim: expected one of the table's"),
    ],
)
def test_arguments_that_tune_nothing_are_refused(options, says, capsys):
    with pytest.raises(SystemExit, match="2"):
        tune.main(["--chip", "sm_90", *options])
    assert says in capsys.readouterr().err
