"""The replay of published token pipelines: a model without surprises, fitted where it says."""

import statistics

import pytest

from benches import terapipe_model
from benches.terapipe_model import Cluster, StageCost, fit_cluster, misfit
from benches.terapipe_paper import FITTED, GPT_1B, SETTINGS, Setting
from benches.terapipe_replay import plot, replay_all, table

CLUSTER = Cluster(90e12, 2.5e9)


@pytest.fixture(scope="module")
def replayed():
    return replay_all()


def test_predictions_are_near_what_was_published(replayed):
    """Of eleven pairs of measurements none of which was fitted; the worst is printed, too."""
    errors = [abs(row.error) for row in replayed if not row.fitted]
    assert len(errors) == 11
    assert statistics.median(errors) <= 0.15
    assert max(errors) <= 0.30
    lines = table(replayed)
    assert len(lines) == 1 + 13 + 1
    assert sum("(fitted)" in line for line in lines) == len(FITTED)


def test_published_slices_are_never_better_than_the_program(replayed):
    for row in replayed:
        assert row.with_s <= row.without_s
        assert row.plan.total_s - row.plan.lower_bound_s <= 1e-4 * row.plan.total_s
        if row.published_scheme_s is not None:
            assert row.with_s <= row.published_scheme_s * (1 + 1e-4)
            assert row.published_scheme_s <= row.with_s * 1.1, "nor much worse"


def test_gains_grow_with_depth_over_batch(replayed):
    """The order of the paper: no gain at 1B, most at 175B in 96 stages."""
    by_row = {row.setting.row: row.speed_up for row in replayed}
    assert by_row[9] > by_row[10] > by_row[8] > by_row[5] > by_row[4] > by_row[3]
    longer = [row.speed_up for row in replayed if not row.setting.row]
    assert by_row[5] < longer[0] < longer[1] < longer[2]


def test_the_fit_sees_the_fitted_rows_alone(monkeypatch):
    changed = tuple(
        setting if setting.row in FITTED else setting._replace(without_s=99.0, with_s=1.0)
        for setting in SETTINGS
    )
    found = fit_cluster(rounds=2)
    monkeypatch.setattr(terapipe_model, "SETTINGS", changed)
    assert fit_cluster(rounds=2) == found


def test_the_fit_is_a_minimum_within_the_data_sheets():
    fitted = [setting for setting in SETTINGS if setting.row in FITTED]
    cluster = fit_cluster()
    assert 0 < cluster.gemm_flops_per_s < 125e12
    assert 0 < cluster.network_bytes_per_s < 3.1e9
    least = misfit(cluster, fitted)
    for speed, network in ((1.05, 1), (0.95, 1), (1, 1.05), (1, 0.95)):
        moved = Cluster(cluster.gemm_flops_per_s * speed, cluster.network_bytes_per_s * network)
        assert least < misfit(moved, fitted)


def test_one_layer_of_the_smallest_model_is_flat_then_linear():
    """The paper's Figure 3: as good as flat up to 256 tokens, 2.7 ms at 1024."""
    cost = StageCost(CLUSTER, Setting(0, GPT_1B, 1, 1, 24, 1, 1.0, 1.0))
    forward = {n: float(cost.layer_s(n, 0)[0]) for n in (1, 64, 256, 1024, 2048)}
    assert max(forward[n] for n in (1, 64, 256)) < terapipe_model.LAUNCH_S
    assert forward[1024] == pytest.approx(2.7e-3, rel=0.25)
    assert 1.8 < forward[2048] / forward[1024] < 2.6


def test_the_plot_is_drawn(replayed, tmp_path):
    plot(replayed, str(tmp_path / "replay.png"))
    assert (tmp_path / "replay.png").read_bytes().startswith(b"\x89PNG")
