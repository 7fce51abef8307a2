"""Ranks that tell something while they work, and ranks that go without a word."""

import functools
import os
import signal
import struct
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from recipes.plan.ranks import run_ranks


def tell_and_wait(device: torch.device, file: Path, tell: Callable[[str], None]) -> str:
    """Goes on once what it told was heard."""
    tell("here")
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    return "heard" if file.exists() else "alone"


def go(device: torch.device) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_ranks_tell_is_heard_while_they_work(tmp_path: Path) -> None:
    told: list[str] = []

    def hear(text: str) -> None:
        told.append(text)
        if len(told) == 2:
            (tmp_path / "heard").touch()

    found = run_ranks(2, tell_and_wait, (tmp_path / "heard",), "cpu", timeout_s=90, hear=hear)
    assert found == ["heard", "heard"]
    assert told == ["here", "here"]


def test_a_rank_that_is_killed_is_noticed_at_once() -> None:
    with pytest.raises(RuntimeError, match=r"rank 0 of 1: ended without a word, exit -9"):
        run_ranks(1, go, (), "cpu", timeout_s=90)


def test_ranks_that_are_late_are_named() -> None:
    with pytest.raises(TimeoutError, match=r"rank 0 of 1: not within 0.2 s"):
        run_ranks(1, lambda device: time.sleep(60), (), "cpu", timeout_s=0.2)


def cut_short(device: torch.device, tell: functools.partial[None]) -> None:
    """The first rank goes in the middle of a message: its length, and less of it."""
    if dist.get_rank() == 1:
        time.sleep(60)
    writer: Connection = tell.args[0]
    os.write(writer.fileno(), struct.pack("!i", 1000) + b"less")
    os._exit(9)


def test_a_rank_that_is_killed_while_it_tells_something_is_noticed_at_once() -> None:
    with pytest.raises(RuntimeError, match="rank 0 of 2: ended without a word, exit 9"):
        run_ranks(2, cut_short, (), "cpu", timeout_s=90, hear=lambda told: None)
