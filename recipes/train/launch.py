"""Starting the processes of a run on this machine, as ``torchrun`` would."""

import logging
import multiprocessing
import os
import threading
import uuid
from collections.abc import Callable
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from recipes.train.config import TrainConfig
from recipes.train.layout import layout_of


def in_workers() -> bool:
    """Whether torchrun (or ``launch``) has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE"} <= set(os.environ)


def launch(
    work: Callable[..., None],
    arguments: tuple[Any, ...],
    config: TrainConfig,
    on_log: Callable[[Any], None] | None,
    on_note: Callable[[str], None] | None,
) -> None:
    """Call ``work(*arguments, on_log, on_note)`` in every process of the config's layout.

    Each process has ``config.num_threads`` threads, one by default. What rank 0 logs and notes
    is handed on here.

    Raises:
        Exception: what the first process that failed raised.
    """
    context = multiprocessing.get_context("spawn")
    said = context.SimpleQueue()
    listener = _Listener(said, on_log, on_note)
    threads = str(config.num_threads or 1)
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=layout_of(config).num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
    )
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        elastic_launch(settings, _worker)(work, arguments, said)
    except ChildFailedError as error:
        listener.stop()
        raise listener.error or error from None
    finally:
        listener.stop()
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _worker(work: Callable[..., None], arguments: tuple[Any, ...], said: Any) -> None:
    try:
        work(*arguments, lambda entry: said.put(("log", entry)), lambda t: said.put(("note", t)))
    except Exception as error:
        said.put(("error", error))
        raise SystemExit(1) from None


class _Listener:
    """Hands on what workers say, from a thread."""

    def __init__(
        self,
        said: Any,
        on_log: Callable[[Any], None] | None,
        on_note: Callable[[str], None] | None,
    ) -> None:
        self._said = said
        self._told = {"log": on_log, "note": on_note}
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            kind, value = self._said.get()
            if kind == "stop":
                return
            if kind == "error":
                self.error = self.error or value
            elif self._told[kind] is not None:
                self._told[kind](value)

    def stop(self) -> None:
        """Return when all that was said is handed on."""
        if self._thread.is_alive():
            self._said.put(("stop", None))
            self._thread.join()
