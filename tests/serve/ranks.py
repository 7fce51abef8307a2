"""Engines over forked ranks of the tiny model, and what becomes of processes."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from recipes.serve import Engine, EngineConfig
from recipes.serve.loading import detokenizers
from recipes.serve.model_runner import RunnerLost
from recipes.serve.parallel import ParallelRunner, RankSpec, fork_ranks
from recipes.serve.parallel.start import Processes
from tests.serve.models import tiny_tokenizer

BLOCK_BYTES = 4 * 2 * 2 * 2 * 8 * 4
"""Of a block of 4 tokens over all ranks: key and value, 2 layers, 2 heads of 8 floats."""


class Pids:
    """Starts forks and remembers them."""

    def __init__(self) -> None:
        self.ranks: list[int] = []

    def __call__(self, specs: Sequence[RankSpec]) -> Any:
        made = fork_ranks(specs)
        assert isinstance(made, Processes)
        self.ranks = [process.pid for process in made._processes.values()]
        return made

    def alive(self) -> list[int]:
        """Those of the last start that still run."""
        return [pid for pid in self.ranks if is_alive(pid)]


def parallel_engine(folder: Path, tp: int, pp: int, *, blocks: int = 512, **settings: Any):
    """An engine over ``tp * pp`` forks, and the forks."""
    start = Pids()
    small: dict[str, Any] = {
        "max_num_seqs": 16,
        "token_budget": 64,
        "block_size": 4,
        "step_timeout": 30.0,
    }
    if pp > 1:
        small["pp_slices"] = 1  # nothing is measured at the start
    budget = blocks * BLOCK_BYTES // (tp * pp)
    config = EngineConfig(**(small | {"tp": tp, "pp": pp, "kv_bytes": budget} | settings))  # type: ignore
    for left in (1, 0):  # a fork of a process with threads may break on its way up
        try:
            runner = ParallelRunner(folder, config, start=start, num_threads=1)
            break
        except RunnerLost:
            if not left:
                raise
    return Engine(runner, detokenizers(tiny_tokenizer()), config), start


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.01)
