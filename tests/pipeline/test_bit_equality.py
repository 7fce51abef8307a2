"""Gradients of pipelines are those of one process, bit for bit, in every schedule."""

import subprocess
import sys

import pytest
import torch

from tests.pipeline.matrix import CASES, check


def run_apart(dtype: str, featured: bool, cases: str) -> str:
    """Cases in a process of its own, without the type checks of the test run."""
    code = (
        "import torch\n"
        "from tests.pipeline.matrix import CASES, run\n"
        f"print(run(torch.{dtype}, {featured}, {cases}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return run.stdout.strip() or run.stderr


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tied_packed_windowed_recomputed(dtype: str) -> None:
    """All schedules with 1, 2 and 4 ranks, stages uneven, sequences of different lengths."""
    assert len(CASES) > 40
    assert run_apart(dtype, True, "CASES") == "[]"


def test_untied_whole_sequences() -> None:
    assert run_apart("float32", False, "CASES") == "[]"


def test_annotations_hold() -> None:
    check("token_zero_bubble", 2, 1, torch.float32, featured=True)
