"""What becomes of a run whose processes fail, in place of the processes themselves."""

import signal

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from recipes.train import ProcessLost, launch, override, tiny, train
from recipes.train.__main__ import main


def ends_with(monkeypatch, error: BaseException, said: Exception | None = None) -> None:
    """Every launch ends so, after one worker said that."""

    def elastic_launch(settings, entry):
        def run(work, arguments, mouth):
            signal.signal(signal.SIGTERM, lambda *_: None)  # as torchelastic does
            if said is not None:
                mouth.open()("error", said)
            raise error

        return run

    monkeypatch.setattr(launch, "elastic_launch", elastic_launch)


def failure(exitcode: int) -> ChildFailedError:
    return ChildFailedError("work", {1: ProcessFailure(1, 4321, exitcode, "<N/A>")})


def test_a_killed_process_is_one_clear_line(monkeypatch, tmp_path, capsys):
    peer = RuntimeError("connection closed by peer")  # what the other one saw of it
    ends_with(monkeypatch, failure(-signal.SIGKILL), peer)
    assert main(["--preset", "tiny", "pp=2", "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: rank 1: expected to work to the end, got SIGKILL; ")
    ends_with(monkeypatch, failure(3))
    with pytest.raises(ProcessLost, match="got exit status 3"):
        train(override(tiny(), ["pp=2"]), out=tmp_path)


def test_what_a_process_raised_is_raised_here(monkeypatch, tmp_path):
    ends_with(monkeypatch, failure(1), ValueError("rows: expected some, got none"))
    with pytest.raises(ValueError, match="rows: expected some"):
        train(override(tiny(), ["pp=2"]), out=tmp_path)


def test_an_interrupt_is_no_traceback(monkeypatch, tmp_path, capsys):
    ends_with(monkeypatch, SignalException("", signal.SIGINT))
    assert main(["--preset", "tiny", "pp=2", "--out", str(tmp_path)]) == 130
    assert "--resume" in capsys.readouterr().err
    ends_with(monkeypatch, SignalException("", signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        main(["--preset", "tiny", "pp=2", "--out", str(tmp_path)])
    assert ended.value.code == 128 + signal.SIGTERM


def test_handlers_of_signals_are_afterwards_as_they_were(monkeypatch, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    ends_with(monkeypatch, failure(1), ValueError("no rows"))
    with pytest.raises(ValueError, match="no rows"):
        train(override(tiny(), ["pp=2"]), out=tmp_path)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(
    ("setting", "num_ranks", "words"), [("dp=1", 2, "= 1, got 2"), ("pp=2", 4, "= 2, got 4")]
)
def test_torchrun_with_other_processes_than_the_layout_is_refused(
    monkeypatch, tmp_path, setting, num_ranks, words
):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(num_ranks))
    with pytest.raises(ValueError, match=rf"processes: expected dp \* pp \* tp {words}; pass dp="):
        train(override(tiny(), [setting]), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_restarts_that_cannot_happen_are_refused(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="max_restarts: expected 0, got 2; only processes"):
        train(tiny(), out=tmp_path, max_restarts=2)
    with pytest.raises(ValueError, match="max_restarts: expected at least 0, got -1"):
        train(override(tiny(), ["pp=2"]), out=tmp_path, max_restarts=-1)
