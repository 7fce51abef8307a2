"""A rank is lost, all start again by themselves, and the run ends as if nothing had been."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from recipes.train import override, tiny, train
from tests.train.test_kill import SETTINGS, result

LONGER = [*SETTINGS, "num_steps=48"]
OPTIONS = ["-m", "recipes.train", "--preset", "tiny"]
QUICK = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
# torch 2.13: with a shared store the nodes that stay and the one that joins wait for each other.
ELASTIC = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    train(override(tiny(), LONGER), out=out)
    return result(out)


def run(command: list[str], said: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command],
        stdout=said.open("a"),
        stderr=subprocess.STDOUT,
        env=os.environ | QUICK | ELASTIC,
        start_new_session=True,
    )


def wait_for_step(step: int, said: Path, process: subprocess.Popen, *, ranks: int = 1) -> None:
    """Until a step is shown by a run of at least so many ranks."""
    deadline = time.monotonic() + 120
    while True:
        text = said.read_text()
        text = text if ranks == 1 else text.partition(f"{ranks} processes")[2]
        shown = re.findall(r"^step +(\d+)/", text, re.MULTILINE)
        if shown and int(shown[-1]) >= step:
            return
        assert process.poll() is None, said.read_text()[-3000:]
        assert time.monotonic() < deadline, said.read_text()[-3000:]
        time.sleep(0.02)


def workers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """The ranks, without helpers of Python's own."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [p for p in found if "resource_tracker" not in " ".join(p.cmdline())]


def lose(process: subprocess.Popen) -> None:
    """Kill a node: torchrun's agent and its workers, which are in sessions of their own."""
    if process.poll() is None:
        for part in [psutil.Process(process.pid), *workers_of(process)]:
            part.kill()
    process.wait()


def test_a_killed_rank_restarts_the_run_which_ends_with_the_same_bits(tmp_path, whole):
    said = tmp_path / "said.txt"
    command = [*OPTIONS, "--out", str(tmp_path / "run"), "--max-restarts", "2"]
    process = run([*command, *LONGER, "pp=2"], said)
    try:
        wait_for_step(8, said, process)
        workers = workers_of(process)
        assert len(workers) == 2, workers
        random.Random().choice(workers).send_signal(signal.SIGKILL)
        assert process.wait(timeout=150) == 0, said.read_text()[-3000:]
    finally:
        lose(process)
    assert "resumed at step" in said.read_text()
    assert result(tmp_path / "run") == whole


def agent(port: int, out: Path, said: Path) -> subprocess.Popen:
    """One node of a torchrun job of one or two nodes."""
    options = ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=5", "--rdzv-backend=c10d"]
    wait = "--rdzv-conf=last_call_timeout=4,join_timeout=60,timeout=60"
    place = [f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=restart", wait]
    torchrun = ["-m", "torch.distributed.run", *options, *place, "--local-addr=127.0.0.1"]
    worker = [*OPTIONS, "--elastic", "--out", str(out), *SETTINGS, "num_steps=80"]
    return run([*torchrun, *worker, "dp=2"], said)


@pytest.mark.nightly
def test_a_lost_node_leaves_the_run_to_the_other_on_half_the_ranks(tmp_path):
    train(override(tiny(), [*SETTINGS, "num_steps=80"]), out=tmp_path / "whole")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, said = tmp_path / "run", tmp_path / "said.txt"
    stays = agent(port, out, said)
    while not said.read_text():  # it keeps the rendezvous
        time.sleep(0.1)
    leaves = agent(port, out, tmp_path / "other.txt")
    try:
        wait_for_step(8, said, stays, ranks=2)
        lose(leaves)
        assert stays.wait(timeout=200) == 0, said.read_text()[-3000:]
    finally:
        lose(stays)
        lose(leaves)
    text = said.read_text()
    assert text.rindex("resumed at step") > text.index("2 processes")
    assert result(out) == result(tmp_path / "whole")
