"""The probe writes a cluster file that plans can be priced on."""

from pathlib import Path

import pytest
import torch

from blocks.sharding import Cluster, Mesh, MeshCost, run_local
from blocks.sharding.cluster import CollectiveTable, Curve
from recipes.plan.calibrate import calibrate, main, residuals
from recipes.plan.calibrate.links import call_of, link_of, measure_tables
from recipes.plan.ranks import run_ranks


def test_the_command_writes_a_cluster_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = {"cpu": (16, 32)}
    monkeypatch.setattr("recipes.plan.calibrate.device.SIDES", small)
    monkeypatch.setattr("recipes.plan.calibrate.device.TOUCHED", {"cpu": (3 << 10, 3 << 12)})
    monkeypatch.setattr("recipes.plan.calibrate.links.SENT", {"cpu": (1 << 10, 1 << 12, 1 << 14)})
    path = tmp_path / "mine.json"
    arguments = ["--out", str(path), "--ranks", "2", "--devices", "4", "--seconds", "0.001"]
    assert main([*arguments, "--device", "cpu", "--dtypes", "float32"]) == 0
    said = capsys.readouterr().out
    for words in ("least time", "GFLOP/s", "all_to_all of 2 ranks", "errors at", "wrote"):
        assert words in said
    cluster = Cluster.load(path)
    assert cluster.num_devices == 4
    assert all("measured" in text for text in cluster.kinds[0].sources.values())
    names = {(table.collective, table.clock) for table in cluster.links[0].tables}
    collectives = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
    assert names == {(c, clock) for c in collectives for clock in ("elapsed", "cpu")}
    for clock in ("elapsed", "cpu"):
        cost = MeshCost(cluster, Mesh.of(a=2, b=2), clock)
        assert 0 < cost.collective_s("all_reduce", 1 << 12, "a") < 10
        assert 0 < cost.work_s(10**6, 0, "float32") < 1
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("collective", ["all_reduce", "all_gather", "reduce_scatter", "all_to_all"])
def test_a_rank_sends_what_the_tables_say(collective, num_ranks: int) -> None:
    def work(rank, groups):
        group = groups["a"]
        call, sent_bytes = call_of(collective, 4099, torch.device("cpu"), group)
        call()
        return sent_bytes, group.num_bytes_sent

    for declared, counted in run_local(Mesh.of(a=num_ranks), work):
        assert declared == counted
        assert 4099 - 8 * num_ranks < declared <= 4099


def test_messages_are_measured_between_two_ranks_only() -> None:
    said: list[str] = []
    tables = measure_tables(3, "cpu", budget_s=0.001, on_progress=said.append, sizes=(999,))
    assert len(said) == 4
    assert {(table.collective == "send", table.num_ranks) for table in tables} == {(False, 3)}


def test_residuals_tell_the_line_from_the_curve() -> None:
    sizes = (1, 2, 3, 4, 5)
    bent = CollectiveTable("all_reduce", 2, "elapsed", Curve(sizes, (1.0, 1.0, 1.0, 5.0, 9.0)))
    straight = CollectiveTable("all_gather", 2, "cpu", Curve(sizes, (1.0, 2.0, 3.0, 4.0, 5.0)))
    _, first, second = residuals([bent, straight])
    assert "curve 0.0%, 0.0%" in first
    assert "line 0.0%" not in first
    assert second == "  all_gather of 2 ranks, cpu: line 0.0%, 0.0%; curve 0.0%, 0.0%"
    link = link_of("wire", [bent, straight], "measured")
    assert link.seconds("all_reduce", 4, 2) == 5.0


def test_a_rank_that_fails_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)rank [01] of 2:.*ZeroDivisionError"):
        run_ranks(2, divide_by_zero, (), "cpu", timeout_s=30)


def divide_by_zero(device: torch.device) -> float:
    return 1 / 0


@pytest.mark.parametrize(
    ("ranks", "message"), [([], "ranks: expected group sizes"), ([1], "ranks: expected group")]
)
def test_groups_of_one_are_refused(ranks: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(ranks)


def test_what_cannot_be_measured_is_refused_before_anything_is(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="dtypes: expected a floating point dtype of torch"):
        calibrate([2], dtypes=["float32", "int3"], on_progress=pytest.fail)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="cpu on this machine, got cuda; torch finds no"):
        calibrate([0], device_type="cuda", on_progress=pytest.fail)
