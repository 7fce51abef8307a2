"""Alpa's closed forms come out exactly; where there is better than them, that is found."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results() -> list[dict]:
    """What ``closed_forms.results`` says of every case, from a process of its own: annotations are
    not executed there, which makes the solver's loops many times slower."""
    code = (
        "import json; from tests.sharding.closed_forms import results; print(json.dumps(results()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_forms_come_out_exactly(results):
    assert len(results) == 30
    assert [one for one in results if not one["exact"] or not one["same_counts"]] == []
    assert [one for one in results if not one["proved"] or one["free"] == "worse"] == []


def test_what_alpa_does_not_consider_is_cheaper(results):
    better = {one["name"] for one in results if one["free"] == "better"}
    assert "sum of 3 products" in better, "added up before they are reduced"
    assert "attention of 512 channels on 4x1" in better, "queries cut, keys and values gathered"
    assert not {name for name in better if "model parallel" in name or "data parallel" in name}
    assert len(better) == 16
