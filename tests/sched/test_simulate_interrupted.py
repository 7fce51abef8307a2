"""An interrupted simulation says so in a word."""

import pytest

from blocks.sched.simulate import __main__ as command


def test_an_interruption_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sys.argv", ["simulate", "--steps", "5"])
    monkeypatch.setattr(command, "simulate", interrupted)
    assert command.main() == 130
    assert capsys.readouterr().err == "interrupted\n"
