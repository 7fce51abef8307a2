"""A run killed at random moments and gone on with, under one layout after another.

python -m tests.train.killing FOLDER SEED NUM_KILLS SETTINGS...

Forks the processes of every attempt from one that has imported everything, so that an attempt
costs its own work only; what runs in them is ``python -m recipes.train`` under torchrun's
environment. Prints how often a process was hit, as JSON.
"""

import itertools
import json
import os
import random
import re
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

import torch

from recipes.train import override, tiny
from recipes.train.__main__ import main as train_main

LAYOUTS = (
    ("dp=1", "pp=1"),
    ("dp=1", "pp=2"),
    ("dp=2", "pp=1"),
    ("dp=2", "pp=2"),
    ("dp=2", "pp=1", "fsdp=true"),
)
MAX_SECONDS = 120


def num_ranks(layout: tuple[str, ...]) -> int:
    return int(layout[0][-1]) * int(layout[1][-1])


def start(arguments: list[str], count: int, said: Path) -> list[int]:
    """Process ids of a run's ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pids = []
    for rank in range(count):
        pid = os.fork()
        if pid:
            pids.append(pid)
            continue
        code = 99
        try:
            file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
            if count > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
                os.environ.update({name: str(value) for name, value in names.items()})
                os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            code = train_main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return pids


class Kill:
    """When to kill: at a step shown on the screen, or before the first one, and a moment later."""

    def __init__(self, step: int, said: Path, choice: random.Random) -> None:
        self._step, self._said = step, said
        self._delay_s = choice.uniform(0, 0.08 if step else 1.0)
        self._reached: float | None = None

    def due(self) -> bool:
        now = time.monotonic()
        if self._reached is None and self._shown() >= self._step:
            self._reached = now
        return self._reached is not None and now >= self._reached + self._delay_s

    def _shown(self) -> int:
        if not self._said.exists():
            return 0
        steps = re.findall(r"^step +(\d+)/", self._said.read_text(), re.MULTILINE)
        return int(steps[-1]) if steps else 0


def finish(pids: list[int], kill: Kill | None, choice: random.Random) -> tuple[list[int], bool]:
    """Exit statuses of the ranks, one of them or all killed at a moment, and whether that moment
    came; all are gone then."""
    started = time.monotonic()
    left, statuses = list(pids), {}
    killed_at: float | None = None
    while left:
        for pid in list(left):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[pid] = os.waitstatus_to_exitcode(status)
                left.remove(pid)
        now = time.monotonic()
        if killed_at is None and left and kill is not None and kill.due():
            killed_at = now
            victims = left if choice.random() < 0.5 else [choice.choice(left)]
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            grace_s = choice.uniform(0, 0.3)  # the others may notice by themselves
        broken = any(statuses.values()) and (killed_at is None or now > killed_at + grace_s)
        if broken or now > started + MAX_SECONDS:  # what torchrun does then
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.003)
    return [statuses[pid] for pid in pids], killed_at is not None


def main(folder: Path, seed: int, num_kills: int, settings: list[str]) -> None:
    torch.set_num_threads(1)
    choice = random.Random(seed)
    folder.mkdir(parents=True)
    num_steps = override(tiny(), settings).num_steps

    def attempt(name: str, layout: tuple[str, ...], kill_at: int | None) -> bool:
        said = folder / f"said-{next(numbers)}.txt"
        kill = None if kill_at is None else Kill(kill_at, said, choice)
        options = ["--preset", "tiny", "--resume", "--out", str(folder / name)]
        arguments = [*options, *settings, *layout]
        pids = start(arguments, num_ranks(layout), said)
        statuses, killed = finish(pids, kill, choice)
        assert killed or not any(statuses), (statuses, said.read_text()[-3000:])
        return killed and any(statuses)

    numbers, layouts = itertools.count(), []
    attempt("whole", LAYOUTS[0], None)
    hits = 0
    for kill_at in sorted(choice.sample(range(num_steps - 2), num_kills)):
        layout = choice.choice(LAYOUTS)
        layouts.append(" ".join(layout))
        hits += attempt("killed", layout, kill_at)
    attempt("killed", choice.choice(LAYOUTS), None)
    print(json.dumps({"hits": hits, "layouts": layouts}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
