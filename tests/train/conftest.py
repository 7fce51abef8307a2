"""What all tests of the trainer have in common."""

import pytest


@pytest.fixture(autouse=True)
def no_drawings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw no loss curve: it takes longer than their steps. Those that fixtures of a module
    make do, as they are made before; one of them is looked at, and so is the drawing itself."""
    monkeypatch.setattr("recipes.train.run.plot_log", lambda *_: False)
