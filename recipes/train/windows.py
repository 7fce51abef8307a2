"""``StepWindows``: steps looked at closely, by torch's profiler or the pipeline's trace."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from blocks.pipeline import Recorder, write_traces
from recipes.train.config import step_window
from recipes.train.trainer import Trainer


class StepWindows:
    """Writes under ``out``: ``profile/rank-0.json`` (Chrome trace, the window of a process) and
    ``trace/replica-0/step-000010-rank-0.jsonl`` (a step of a pipeline rank)."""

    def __init__(self, trainer: Trainer, out: Path) -> None:
        config = trainer.config
        self._trainer, self._out = trainer, out
        self._profiled = step_window("profile", config.profile)
        self._traced = step_window("trace", config.trace)
        self._profiler = None

    @contextlib.contextmanager
    def around(self, step: int) -> Iterator[None]:
        """Around step ``step``, counted from 0."""
        if step in self._profiled and self._profiler is None:
            self._profiler = torch.profiler.profile(acc_events=True)
            self._profiler.start()
        if step in self._traced:
            with self._trace(step):
                yield
        else:
            yield
        if self._profiler is not None and step + 1 >= self._profiled.stop:
            self._profiler.stop()
            name = f"rank-{self._trainer.place.rank}.json"
            self._profiler.export_chrome_trace(str(self._file("profile", name)))
            self._profiler = None

    @contextlib.contextmanager
    def _trace(self, step: int) -> Iterator[None]:
        trainer = self._trainer
        replica, place = trainer.replica, trainer.place
        place.wait_for_all()
        bounds = [replica.bounds] * replica.schedule.num_sequences
        meta = {"step": step, "dp": place.position.dp}
        recorder = Recorder(replica.rank, replica.schedule, bounds, meta)
        replica.listener = recorder
        try:
            yield
        finally:
            replica.listener = None
        if not replica.is_traced:
            return
        losses = () if replica.losses is None else replica.losses.tolist()
        name = f"step-{step:06d}-rank-{replica.rank}.jsonl"
        folder = f"trace/replica-{place.position.dp}"
        write_traces(self._file(folder, name), [recorder.trace(losses)])

    def _file(self, folder: str, name: str) -> Path:
        path = self._out / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path
