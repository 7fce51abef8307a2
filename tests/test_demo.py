"""The serving half of the demo, as `make demo` runs it; training has tests of its own."""

import asyncio
import re

import pytest

from recipes import demo


def test_drive_prints_answers_and_what_the_server_says(capfd: pytest.CaptureFixture[str]) -> None:
    with demo.server() as url:
        asyncio.run(demo.drive(url))
    out = capfd.readouterr().out
    assert "What does json.dumps do?  Serialize ``obj`` to a JSON formatted ``str``." in out
    assert re.search(r"48 requests, \d{4} tokens in [\d.]+ s: \d+/s", out)
    assert re.search(r"KV cache at the busiest moment: [1-9]\d* running, [\d.]+% of blocks", out)
    hits = re.search(r"prefix cache: (\d+) of (\d+) prompt tokens found", out)
    assert hits
    assert 0 < int(hits[1]) < int(hits[2])


def test_server_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SERVE", ("recipes.serve", "/no/such/folder"))
    with pytest.raises(RuntimeError, match="ended with code 4"), demo.server():
        pass


def test_sparkline_falls() -> None:
    assert demo.sparkline([4.0, 3.0, 2.0, 1.0]) == "█▆▃▁"
    assert demo.sparkline([1.0, 1.0]) == "▁▁"


def test_help_tells_and_runs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        demo.main(["--help"])
    assert left.value.code == 0
    assert "Trains a small model" in capsys.readouterr().out
