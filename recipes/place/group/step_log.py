"""``StepLog``: every step of a group, a line each in a file."""

import json
from pathlib import Path
from typing import NamedTuple

from blocks.sched.cluster_sim.generation import Load


class Step(NamedTuple):
    """A step that a group took.

    began_s: when, on the machine's monotonic clock, or on the group's own.
    seconds: until its tokens were sent off; from the end of the step before, where the group did
        not wait in between.
    model: whose. load: what it computed.
    """

    began_s: float
    seconds: float
    model: str
    load: Load


class StepLog:
    """Writes steps to the end of a file, line by line.

    Args:
        path: of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = Path(path).open("a", buffering=1)  # noqa: SIM115

    def add(self, step: Step) -> None:
        self._file.write(json.dumps(step) + "\n")

    def close(self) -> None:
        self._file.close()


def read_steps(path: str | Path) -> list[Step]:
    """All steps of a log; a line that is being written is left out."""
    lines = Path(path).read_text().split("\n")[:-1]
    return [_step(*json.loads(line)) for line in lines]


def _step(began_s: float, seconds: float, model: str, load: list) -> Step:
    num_prompt, chunks, num_decodes, context_len = load
    pairs = tuple((begin, count) for begin, count in chunks)
    return Step(began_s, seconds, model, Load(num_prompt, pairs, num_decodes, context_len))
