"""A client that leaves gives its blocks back, at whatever moment, streaming or not."""

import itertools
import json
import random
import socket
import time

import pytest

from recipes.serve import Engine
from recipes.serve.async_engine import AsyncEngine
from recipes.serve.completions import CompletionWriter
from recipes.serve.model_runner import RunnerLost
from recipes.serve.runner import Runner
from tests.serve.live_server import LiveServer, serving, wait_until
from tests.serve.models import tiny_loaded


@pytest.fixture
def slow_server(monkeypatch):
    """A server whose steps take long enough to leave in the middle of one."""
    original = Runner.forward

    def forward(self, batch):
        time.sleep(0.01)
        return original(self, batch)

    monkeypatch.setattr(Runner, "forward", forward)
    with serving(tiny_loaded(max_num_seqs=4)) as live:
        yield live


def open_request(server: LiveServer, stream: bool, **fields) -> socket.socket:
    """A request on its own socket, sent and not waited for."""
    body = {"prompt": [5, 6, 7], "max_tokens": 200, "ignore_eos": True, "stream": stream} | fields
    raw = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(raw)}\r\n\r\n"
    sock = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    sock.sendall(head.encode() + raw)
    return sock


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_leaving_cancels_the_work_and_frees_the_blocks(slow_server, stream):
    sock = open_request(slow_server, stream)
    wait_until(lambda: slow_server.engine.scheduler.num_running == 1)
    left = time.monotonic()
    sock.close()
    wait_until(lambda: not slow_server.engine.has_work())
    assert time.monotonic() - left < 1.0, "200 tokens at 10 ms would take two seconds"
    slow_server.wait_idle()
    assert b'cause="client_left"' in slow_server.service.metrics.render()


def test_clients_that_leave_at_any_moment_leak_nothing(slow_server):
    rng = random.Random(1)
    for round_ in range(6):
        socks = [
            open_request(slow_server, rng.random() < 0.5, n=rng.choice([1, 3]), seed=round_)
            for _ in range(8)
        ]
        rng.shuffle(socks)
        for sock in socks:
            time.sleep(rng.random() * 0.02)
            sock.close()
    slow_server.wait_idle()
    status, _ = slow_server.post("/v1/completions", {"prompt": "hi", "max_tokens": 2})
    assert status == 200


def test_leaving_while_queued_or_after_the_last_token(slow_server):
    socks = [open_request(slow_server, True) for _ in range(6)]  # two of them have to wait
    wait_until(lambda: slow_server.engine.scheduler.num_waiting > 0)
    for sock in reversed(socks):
        sock.close()
    slow_server.wait_idle()
    sock = open_request(slow_server, False, max_tokens=1)
    wait_until(lambda: b"200 OK" in sock.recv(4096))
    sock.close()
    slow_server.wait_idle()


def test_a_full_queue_is_refused_at_once_with_retry_after(monkeypatch):
    original = Runner.forward

    def forward(self, batch):
        time.sleep(0.05)
        return original(self, batch)

    monkeypatch.setattr(Runner, "forward", forward)
    with serving(tiny_loaded(max_num_seqs=2, max_waiting=2)) as server:
        socks = [open_request(server, True) for _ in range(2)]
        wait_until(lambda: server.engine.scheduler.num_running == 2)
        socks += [open_request(server, True) for _ in range(2)]
        wait_until(lambda: server.service.engine.num_in_flight == 4)
        before = time.monotonic()
        status, payload, headers = server.request(
            "POST", "/v1/completions", {"prompt": "hi", "max_tokens": 2}
        )
        assert time.monotonic() - before < 0.5
        assert (status, payload["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 1 <= int(headers["retry-after"]) <= 120
        for sock in socks:
            sock.close()
        server.wait_idle()


def test_a_request_that_takes_too_long_is_ended(monkeypatch):
    original = Runner.forward

    def forward(self, batch):
        time.sleep(0.02)
        return original(self, batch)

    monkeypatch.setattr(Runner, "forward", forward)
    with serving(tiny_loaded(), request_timeout=0.3) as server:
        body = {"prompt": "hi", "max_tokens": 200, "ignore_eos": True}
        status, payload, headers = server.request("POST", "/v1/completions", body)
        assert (status, payload["error"]["code"]) == (504, "timeout")
        assert headers["x-should-retry"] == "false"
        status, raw = server.post("/v1/completions", body | {"stream": True})
        frames = raw.decode().strip().split("\n\n")
        assert frames[-1] == "data: [DONE]"
        assert json.loads(frames[-2][6:])["error"]["code"] == "timeout"
        server.wait_idle()


def test_an_error_in_the_engine_ends_the_request_and_not_the_server(monkeypatch):
    original = Runner.forward

    def forward(self, batch):
        if any(entry.sequence.tokens[0] == 9 for entry in batch.entries):
            raise RuntimeError("secret path /etc/shadow")
        return original(self, batch)

    monkeypatch.setattr(Runner, "forward", forward)
    with serving(tiny_loaded()) as server:
        status, payload, headers = server.request("POST", "/v1/completions", {"prompt": [9, 9]})
        assert (status, payload["error"]["type"]) == (500, "server_error")
        assert "secret" not in payload["error"]["message"]
        assert headers["x-should-retry"] == "false"
        status, raw = server.post("/v1/completions", {"prompt": [9, 9], "stream": True})
        assert status == 200
        assert b'"error":' in raw
        assert raw.endswith(b"data: [DONE]\n\n")
        status, _ = server.post("/v1/completions", {"prompt": [8, 9], "max_tokens": 2})
        assert status == 200
        server.wait_idle()


def test_a_request_whose_model_is_lost_may_be_sent_again(monkeypatch):
    def forward(self, batch):
        raise RunnerLost("rank 1 was killed")

    original = Runner.forward
    monkeypatch.setattr(Runner, "forward", forward)
    with serving(tiny_loaded()) as server:
        status, payload, headers = server.request("POST", "/v1/completions", {"prompt": [9, 9]})
        assert (status, payload["error"]["code"]) == (503, "group_lost")
        assert payload["error"]["message"] == "rank 1 was killed"
        assert int(headers["retry-after"]) >= 1
        status, raw = server.post("/v1/completions", {"prompt": [9, 9], "stream": True})
        assert (status, b'"code":"group_lost"' in raw) == (200, True)
        monkeypatch.setattr(Runner, "forward", original)
        assert server.post("/v1/completions", {"prompt": [8, 9], "max_tokens": 2})[0] == 200
        server.wait_idle()


def test_a_command_that_raises_does_not_end_the_engines_thread(monkeypatch):
    original, calls = Engine.cancel, itertools.count()

    def cancel(self, request_id):
        if next(calls) == 0:
            raise KeyError(request_id)
        return original(self, request_id)

    monkeypatch.setattr(Engine, "cancel", cancel)
    with serving(tiny_loaded()) as server:
        sock = open_request(server, True)
        wait_until(lambda: b"data:" in sock.recv(4096))
        sock.close()
        wait_until(lambda: not server.engine.has_work())
        status, _ = server.post("/v1/completions", {"prompt": [8, 9], "max_tokens": 2})
        assert status == 200
        server.wait_idle()


def test_an_unforeseen_exception_in_a_stream_ends_it_with_an_error_event(monkeypatch):
    def events(self, delta):
        raise RuntimeError("secret path /etc/shadow")

    monkeypatch.setattr(CompletionWriter, "events", events)
    with serving(tiny_loaded()) as server:
        status, raw = server.post("/v1/completions", {"prompt": [8, 9], "stream": True})
        assert (status, b"secret" in raw) == (200, False)
        assert b'"code":"internal_error"' in raw
        assert raw.endswith(b"data: [DONE]\n\n")
        server.wait_idle()


def test_without_its_thread_the_engine_is_unavailable_and_nobody_waits():
    with serving(tiny_loaded()) as server:
        assert isinstance(server.service.engine, AsyncEngine)
        server.service.engine.join(10)
        status, payload = server.post("/v1/completions", {"prompt": [8, 9]})
        assert (status, payload["error"]["code"]) == (503, "server_unavailable")
        assert server.request("GET", "/health")[0] == 503


def test_readiness_is_lost_while_pending_work_makes_no_progress(monkeypatch):
    original = Runner.forward
    hold = [True]

    def forward(self, batch):
        while hold[0]:
            time.sleep(0.01)
        return original(self, batch)

    monkeypatch.setattr(Runner, "forward", forward)
    with serving(tiny_loaded(), stall_timeout=0.2) as server:
        assert server.request("GET", "/ready")[0] == 200
        sock = open_request(server, True, max_tokens=2)
        wait_until(lambda: server.request("GET", "/ready")[0] == 503)
        assert server.request("GET", "/health")[0] == 200
        hold[0] = False
        wait_until(lambda: server.request("GET", "/ready")[0] == 200)
        sock.close()
        server.wait_idle()
