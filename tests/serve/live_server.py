"""A real server on a loopback socket, in a thread of the test process."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from recipes.serve.config import ServerConfig
from recipes.serve.loading import Loaded
from recipes.serve.server import Server, build_service, listen


class LiveServer:
    """A running server: its address, and the engine behind it for looking into."""

    def __init__(self, loaded: Loaded, send_buffer: int | None = None, **settings: Any) -> None:
        self.loaded = loaded
        self.engine = loaded.engine
        sock = listen("127.0.0.1", 0)
        if send_buffer is not None:  # connections inherit it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = ServerConfig(**({"port": self.port, "model_name": "tiny"} | settings))  # type: ignore
        self.service = build_service(loaded, config)
        self.server = Server(self.service)
        self._thread = threading.Thread(target=self.server.run, args=([sock],), daemon=True)

    def start(self) -> None:
        self._thread.start()
        wait_until(lambda: self.server.started)

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive(), "the server did not stop"

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, decoded body and headers of one plain request; bytes are sent as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        content = {} if body is None else {"content-type": "application/json"}
        try:
            connection.request(method, path, raw, content | (headers or {}))
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in response.getheaders()}
        is_json = found.get("content-type", "").startswith("application/json")
        return response.status, json.loads(data) if is_json else data, found

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        status, payload, _ = self.request("POST", path, body, headers)
        return status, payload

    def wait_idle(self) -> None:
        """Wait until nothing is in flight, then check that nothing leaked."""
        engine = self.engine
        wait_until(lambda: not engine.has_work() and self.service.engine.num_in_flight == 0)
        assert engine.manager.num_free_blocks == engine.manager.num_usable_blocks
        engine.scheduler.check_invariants()
        engine.manager.check_invariants()


def wait_until(condition, seconds: float = 15.0) -> None:
    """Poll until ``condition()``; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


@contextlib.contextmanager
def serving(loaded: Loaded, **settings: Any) -> Iterator[LiveServer]:
    server = LiveServer(loaded, **settings)
    server.start()
    try:
        yield server
    finally:
        server.stop()
