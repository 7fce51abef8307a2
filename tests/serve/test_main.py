"""The command, as a process: what it says, how it ends."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recipes.model import save_model
from recipes.serve.__main__ import main
from recipes.serve.config import ServerConfig
from recipes.serve.server import Server, build_service
from tests.serve.models import tiny_decoder, tiny_loaded, tiny_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny-model"
    save_model(tiny_decoder(), folder, tiny_tokenizer())
    return folder


def start(*arguments: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "recipes.serve", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--host", "0.0.0.0"], 2, "API key"),
        (["--kv-memory", "lots"], 2, "--kv-memory: size: expected a number with KiB"),
        (["--kv-memory", "1000TiB", "--port", "0"], 4, "lower the budget"),
        (["--device", "nowhere", "--port", "0"], 4, "device: expected one that works here"),
        (["--device", "meta", "--port", "0"], 4, "device: expected one that holds numbers"),
        (["--request-timeout", "nan"], 2, "request_timeout: expected more than 0 seconds"),
        (["--request-timeout", "-1"], 2, "request_timeout: expected more than 0 seconds"),
        (["--drain-timeout", "nan"], 2, "drain_timeout: expected 0 or more seconds"),
        (["--api-key", ""], 2, "api_key: expected a non-empty key"),
        (["--max-num-seqs", "9", "--token-budget", "1"], 2, "token_budget"),
        (["/nowhere/at/all", "--port", "0"], 4, "/nowhere/at/all"),
        (["--port", "99999"], 2, "port"),
        (["--host", "127.0.0.1", "--port", "TAKEN"], 5, "choose another --port"),
    ],
)
def test_a_mistake_is_one_clear_error_and_a_code(monkeypatch, capsys, arguments, code, message):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        filled = [port if word == "TAKEN" else word for word in arguments]
        monkeypatch.setattr(sys, "argv", ["serve", *filled])
        try:
            got = main()
        except SystemExit as left:  # argparse
            got = left.code
    assert got == code
    errors = capsys.readouterr().err
    assert message in errors
    assert "Traceback" not in errors


def test_serve_stream_and_drain(model):
    """SIGTERM in the middle of a stream: the stream finishes, the exit code is 0."""
    process = start(str(model), "--port", "0", "--kv-memory", "4MiB", "--max-num-seqs", "4")
    assert process.stdout is not None
    said = ""
    while "serving" not in said:
        line = process.stdout.readline()
        assert line, finish(process)
        said += line
    assert "tokens fit" in said
    while "page " not in said:
        said += process.stdout.readline()
    assert re.search(r"page +http://127.0.0.1:\d+/\n", said)
    port = int(re.search(r"serving +http://127.0.0.1:(\d+)/v1", said)[1])  # type: ignore
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"prompt": [1, 2], "max_tokens": 200, "n": 4, "stream": True, "ignore_eos": True}
    _wait_for(port)
    connection.request(
        "POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"}
    )
    response = connection.getresponse()
    first = response.readline()
    process.send_signal(signal.SIGTERM)
    rest = response.read()
    assert first.startswith(b"data: ")
    assert rest.endswith(b"data: [DONE]\n\n")
    assert rest.count(b'"finish_reason":"length"') == 4
    code, errors = finish(process)
    assert code == 0, errors


def _wait_for(port: int) -> None:
    for _ in range(200):
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            connection.getresponse().read()
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError("the server does not answer")


def test_a_second_signal_does_not_wait():
    server = Server(build_service(tiny_loaded(), ServerConfig()))
    server.handle_exit(signal.SIGTERM, None)
    assert (server.should_exit, server.force_exit) == (True, False)
    server.handle_exit(signal.SIGTERM, None)
    assert server.force_exit
