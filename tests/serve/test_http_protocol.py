"""Slow, oversized and malformed HTTP costs a connection and nothing else."""

import contextlib
import socket
import time

import pytest

from tests.serve.live_server import serving, wait_until
from tests.serve.models import tiny_loaded


@pytest.fixture(scope="module")
def strict():
    limits = {"header_timeout": 0.4, "body_timeout": 0.4, "write_timeout": 0.4}
    sizes = {"max_connections": 20, "max_header_bytes": 8192, "send_buffer": 8192}
    with serving(tiny_loaded(), **sizes, **limits) as live:
        yield live


def connect(server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=5)


def read_all(sock: socket.socket, until: bytes | None = None) -> bytes:
    data = b""
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            data += chunk
            if until is not None and until in data:
                break
    return data


def seconds_until_closed(sock: socket.socket) -> float:
    started = time.monotonic()
    read_all(sock)
    return time.monotonic() - started


@pytest.mark.parametrize(
    "start", [b"", b"GET /hea", b"GET /health HTTP/1.1\r\nhost: localhost\r\n"]
)
def test_a_head_that_does_not_end_is_cut_off(strict, start):
    with connect(strict) as sock:
        sock.sendall(start)
        assert seconds_until_closed(sock) < 2


def test_a_head_trickled_in_on_a_used_connection_is_cut_off(strict):
    with connect(strict) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert b"200" in sock.recv(65536)
        sock.sendall(b"GET /health")
        assert seconds_until_closed(sock) < 2


def test_a_body_that_does_not_come_is_answered_408(strict):
    with connect(strict) as sock:
        sock.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{"
        )
        answer = read_all(sock)
        assert b"408" in answer.split(b"\r\n")[0]
        assert b"body_timeout" in answer


def test_an_oversized_head_is_refused_in_openai_shape(strict):
    with connect(strict) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(b"GET /health HTTP/1.1\r\nx: " + b"a" * 100_000)
        answer = read_all(sock)
    assert answer == b"" or b" 431 " in answer.split(b"\r\n")[0]


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: xyz\r\n\r\n",
    ],
)
def test_malformed_heads_are_refused_in_openai_shape(strict, head):
    with connect(strict) as sock:
        sock.sendall(head)
        answer = read_all(sock, until=b'"error":{')
    status = int(answer.split()[1])
    assert 400 <= status < 600
    assert b'"error":{' in answer


def test_a_reader_that_stops_reading_is_cut_off_and_its_blocks_freed(strict):
    with connect(strict) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        body = b'{"prompt": [1], "max_tokens": 250, "n": 2, "stream": true, "logprobs": 20}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
        sock.sendall(head % len(body) + body)
        wait_until(lambda: strict.engine.has_work())
        wait_until(lambda: not strict.engine.has_work())
    strict.wait_idle()


def test_too_many_connections_are_told_to_come_back(strict):
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(connect(strict))
        answer = read_all(stack.enter_context(connect(strict)))
    assert b"503" in answer.split(b"\r\n")[0]
    assert b"retry-after" in answer
    wait_until(lambda: len(strict.server.server_state.connections) == 0)


def test_after_all_that_the_server_serves(strict):
    status, _ = strict.post("/v1/completions", {"prompt": "hi", "max_tokens": 2})
    assert status == 200
    strict.wait_idle()
