"""Plans that practitioners know to be best are found on traced models."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """From a process of its own, see ``known_plans``."""
    command = [sys.executable, "-m", "tests.plan.known_plans"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("num_devices", [4, 8])
def test_wide_layers_of_few_tokens_are_cut_by_columns_heads_and_rows(found, num_devices):
    plan = found[f"columns and rows, heads, on {num_devices}"]
    assert plan["columns"] == ["S(0)"], "what leads into a pair, its outputs apart"
    assert plan["rows"] == ["S(1)"], "what leads out of it, its inputs apart"
    assert plan["attention"] == ["S(1)"], "heads"
    assert plan["gap"] < 1e-9


def test_loss_is_cut_along_the_vocabulary(found):
    plan = found["vocabulary"]
    assert plan["head"] == "S(0)"
    assert plan["picked"] == ["S(2)"], "every rank looks for the labels in its part of the logits"
    assert plan["longest_over_hidden"] <= 1, "nothing longer than the activations is sent"


def test_parameters_are_cut_where_memory_binds_and_only_as_many(found):
    for plan in found["zero"]:
        assert plan["whole"] == plan["room"]
        assert plan["by_batch"]
        assert plan["state"] == ["S"], "as good as whole where time counts, and smaller"
    took = [plan["seconds"] for plan in found["zero"]]
    assert took == sorted(took)
    assert took[0] < took[-1]


def test_small_conv_nets_cut_the_batch_and_late_layers_of_wide_ones_channels(found):
    small, wide = (found["convolutions"][name] for name in ("small", "wide"))
    assert set(small) == {"batch"}
    assert wide[:4] == ["batch"] * 4
    assert wide[-4:] == ["channels"] * 4


def test_experts_go_to_ranks(found):
    plan = found["experts"]
    assert (plan["up"], plan["down"]) == ("S(0)", "S(0)")
    assert plan["attention"] == ["S(0)"], "by the batch"
    assert plan["all_to_all"] >= 4


def test_the_stage_of_a_heavy_head_has_fewer_layers(found):
    plan = found["heavy head"]
    layers = plan["layers"]
    assert sum(layers) == plan["num_layers"]
    assert layers[-1] < max(layers[:-1])
    assert plan["spread"] < 1.25
