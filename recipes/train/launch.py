"""Starting the processes of a run on this machine, as ``torchrun`` would."""

import contextlib
import logging
import os
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from recipes.train.config import TrainConfig
from recipes.train.ear import Ear, Mouth
from recipes.train.layout import layout_of


class ProcessLost(RuntimeError):
    """A process of a run was killed, or ended without a word, before the run was done."""


def in_workers() -> bool:
    """Whether torchrun (or ``launch``) has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE"} <= set(os.environ)


def launch(
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    config: TrainConfig,
    on_log: Callable[[Any], None] | None,
    on_note: Callable[[str], None] | None,
    max_restarts: int = 0,
) -> None:
    """Call ``work(*arguments, on_log, on_note)`` in every process of the config's layout.

    Each process has ``config.num_threads`` threads, one by default. What rank 0 logs and notes
    is handed on here. Where one process fails or is killed, all are started again, so often at
    most.

    Raises:
        ProcessLost: a process was killed, in the last attempt.
        Exception: what the first process that failed raised in it.
        KeyboardInterrupt: this process was interrupted; the others have ended.
    """
    threads = str(config.num_threads or 1)
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=layout_of(config).num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=max_restarts,
        monitor_interval=0.1,
        start_method="spawn",
    )
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    ear = Ear(on_log, on_note)
    try:
        with _handlers_kept():
            elastic_launch(settings, _worker)(work, arguments, ear.mouth)
    except ChildFailedError as error:
        ear.close()
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0 or ear.error is None:  # the others only miss the one killed
            raise _lost(rank, failure) from None
        raise ear.error from None
    except SignalException as error:
        if error.sigval == signal.SIGINT:
            raise KeyboardInterrupt from None
        raise SystemExit(128 + error.sigval) from None
    finally:
        ear.close()
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextlib.contextmanager
def _handlers_kept() -> Iterator[None]:
    """torchelastic puts handlers of its own in place, and leaves them there."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)


def _lost(rank: int, failure: ProcessFailure) -> ProcessLost:
    how = f"exit status {failure.exitcode}"
    if failure.exitcode < 0:
        how = signal.Signals(-failure.exitcode).name
    hint = "go on with --resume, or let it start again by itself with --max-restarts"
    return ProcessLost(f"rank {rank}: expected to work to the end, got {how}; {hint}")


def _worker(work: Callable[..., None], arguments: tuple[Any, ...], mouth: Mouth) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the one who started us says it for all
    say = mouth.open()
    try:
        work(*arguments, lambda entry: say("log", entry), lambda text: say("note", text))
    except Exception as error:
        say("error", error)
        raise SystemExit(1) from None
