"""Ranks started otherwise: over a port, as fresh interpreters, by torchrun."""

import contextlib
import errno
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from recipes.model import save_model
from recipes.serve import EngineConfig
from recipes.serve.arguments import engine_config, parse
from recipes.serve.loading import detokenizers
from recipes.serve.model_runner import RunnerLost
from recipes.serve.parallel import ParallelRunner, RankSpec, exec_ranks, worker_group
from recipes.serve.parallel.torchrun import TorchrunRanks, in_torchrun
from tests.serve.models import EOS, tiny_decoder, tiny_tokenizer
from tests.serve.oracle import greedy
from tests.serve.ranks import Pids, is_alive, parallel_engine
from tests.serve.test_engine import Engine, job, run

ROOT = Path(__file__).parents[2]
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    save_model(tiny_decoder(), path, tiny_tokenizer())
    return path


def answer(runner: ParallelRunner, config: EngineConfig) -> list[int]:
    engine = Engine(runner, detokenizers(tiny_tokenizer()), config)
    try:
        return run(engine, job("a", PROMPT, max_tokens=6))[0].completions[0].token_ids
    finally:
        engine.close()


EXPECTED = (tuple(PROMPT), 6, EOS)


def test_the_folder_of_an_engine_that_was_killed_is_removed_by_the_next(
    folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    done, told = os.pipe()
    engine = os.fork()
    if engine == 0:
        with contextlib.suppress(BaseException):
            parallel_engine(folder, 1, 2)
            os.write(told, b"x")
            signal.pause()
        os._exit(1)
    os.close(told)
    try:
        assert os.read(done, 1) == b"x"
    finally:
        os.close(done)
        os.kill(engine, signal.SIGKILL)
        os.waitpid(engine, 0)
    assert [path.name[:13] for path in tmp_path.iterdir()] == ["blocks-ranks-"]
    deadline = time.monotonic() + 60
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        parallel_engine(folder, 1, 2)[0].close()  # its ranks may take a moment to end
    assert list(tmp_path.iterdir()) == []


def test_ranks_of_which_one_does_not_start_leave_nothing(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    started: list[int] = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **kwargs) -> None:
            if started:
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            super().__init__(*args, **kwargs)
            started.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(RunnerLost, match=r"did not start: .*Resource temporarily unavailable"):
        ParallelRunner(folder, EngineConfig(tp=2, kv_bytes=1 << 18), num_threads=1)
    assert not is_alive(started[0])
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_ends_before_it_hears_what_it_is_to_be_is_named(folder, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    for _ in range(5):  # whether it has ended by then is chance
        with pytest.raises(RunnerLost, match=r"rank \d .* ended with exit status 1"):
            ParallelRunner(folder, EngineConfig(tp=2, kv_bytes=1 << 18), num_threads=1)


def test_a_place_for_temporary_files_that_is_too_deep_for_sockets(folder, tmp_path, monkeypatch):
    deep = tmp_path / ("deep" * 25)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(ValueError, match="set TMPDIR to a folder with a shorter path"):
        ParallelRunner(folder, EngineConfig(tp=2, kv_bytes=1 << 18), num_threads=1)
    assert list(deep.iterdir()) == []


def test_ranks_that_meet_over_a_port(folder, monkeypatch):
    """As those of other machines would; strangers who do not know the key are turned away."""
    config, forks = EngineConfig(tp=2, kv_bytes=1 << 18), Pids()
    knocked, mute = threading.Event(), []
    monkeypatch.setattr(worker_group, "SPEAK_S", 1.0)

    def start(specs):
        host, _, port = specs[0].address.rpartition(":")
        assert host == "127.0.0.1"
        assert specs[0].rendezvous.startswith("tcp://127.0.0.1:")
        with socket.create_connection((host, int(port))) as stranger:
            stranger.sendall(b"\0\0\0\4\0\0\0\0 hello, let me in, I am rank 0")
        mute.append(socket.create_connection((host, int(port))))  # and one that never speaks
        knocked.set()
        return forks(specs)

    runner = ParallelRunner(folder, config, start=start, num_threads=1, host="127.0.0.1")
    assert knocked.is_set()
    assert answer(runner, config) == greedy(tiny_decoder(), *EXPECTED)
    assert not forks.alive()
    mute[0].close()


def test_a_spec_travels_as_text_and_does_not_show_its_key():
    spec = RankSpec(
        rank=1, tp=2, pp=1, address="/tmp/x", key="abcdef", rendezvous="file:///tmp/y",
        folder="/models/m", num_blocks=9, block_size=4,
    )  # fmt: skip
    assert RankSpec.from_json(spec.to_json()) == spec
    assert "abcdef" not in repr(spec)
    with pytest.raises(ValueError, match="rank spec"):
        RankSpec.from_json('{"rank": 1}')


def test_torchrun_must_have_started_as_many_processes(monkeypatch):
    assert not in_torchrun()
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert in_torchrun()
    with pytest.raises(ValueError, match=r"tp \* pp: expected the number of processes, 2, got 4"):
        TorchrunRanks(4)


def test_the_command_line_takes_settings_with_and_without_dashes(tmp_path):
    config = engine_config(parse(["tp=2", "--port", "0", "pp=3", "max_num_seqs=8"]))
    assert (config.tp, config.pp, config.max_num_seqs) == (2, 3, 8)
    options = parse(["FOLDER", "--tp", "4", "--pp-slices", "2", "--pp", "2", "pp_batches=3"])
    assert (options.model, engine_config(options).tp) == ("FOLDER", 4)
    assert (engine_config(options).pp_slices, engine_config(options).pp_batches) == (2, 3)
    odd = tmp_path / "a=b"
    odd.mkdir()
    assert parse([str(odd)]).model == str(odd)
    with pytest.raises(ValueError, match="did you mean tp"):
        engine_config(parse(["tpp=2"]))
    with pytest.raises(ValueError, match="tp: expected a positive whole number, got 0"):
        engine_config(parse(["tp=0"]))


@pytest.mark.nightly
def test_fresh_interpreters(folder):
    config = EngineConfig(tp=2, pp=2, kv_bytes=1 << 18)
    runner = ParallelRunner(folder, config, start=exec_ranks, num_threads=1)
    assert answer(runner, config) == greedy(tiny_decoder(), *EXPECTED)


@pytest.mark.nightly
@pytest.mark.parametrize("torchrun", [False, True])
def test_the_server_over_ranks(folder, torchrun):
    """Started, asked, drained by SIGTERM; no process is left."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *(launcher if torchrun else []), "-m", "recipes.serve"]
    server = subprocess.Popen(
        [*command, str(folder), "tp=2", "--port", str(port), "--kv-memory", "1MiB"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0, "return_token_ids": True}
        found = _ask(port, body, deadline=time.monotonic() + 120)
        assert found["choices"][0]["token_ids"] == greedy(tiny_decoder(), *EXPECTED)
        server.send_signal(signal.SIGTERM)
        server.wait(60)
        deadline = time.monotonic() + 20
        while _session(server.pid):
            assert time.monotonic() < deadline, _session(server.pid)
            time.sleep(0.05)
    finally:
        for pid in _session(server.pid):
            os.kill(pid, signal.SIGKILL)


def _ask(port: int, body: dict, deadline: float) -> dict:
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
            )
            return json.loads(connection.getresponse().read())
        except OSError:
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.2)
        finally:
            connection.close()


def _session(leader: int) -> list[int]:
    """Processes of a session that run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return found
