"""Test-run switches: the Triton interpreter, shape annotations executed, Hypothesis profiles."""

import importlib.util
import os
from pathlib import Path

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read by triton at import, so set it first

import hypothesis
import pytest

ROOT = Path(__file__).parents[1]

if importlib.util.find_spec("beartype"):  # a borrowed interpreter may lack it
    from tests.annotations import execute_annotations

    execute_annotations(ROOT)

hypothesis.settings.register_profile("ci", deadline=None, max_examples=40, derandomize=True)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers already use every core


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out ``nightly`` and ``gpu`` tests unless ``-m`` asks for them by name."""
    asked = str(config.getoption("markexpr") or "")
    left_out = [
        item
        for item in items
        if any(item.get_closest_marker(m) and m not in asked for m in ("nightly", "gpu"))
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def device() -> torch.device:
    """The accelerator when there is one, else the CPU (Triton then runs in its interpreter)."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def seeded() -> torch.Generator:
    """A generator with a fixed seed on the CPU."""
    return torch.Generator().manual_seed(0)
