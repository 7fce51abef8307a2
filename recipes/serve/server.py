"""The HTTP server: uvicorn with our limits, and a SIGTERM that lets running requests finish."""

import contextlib
import functools
import logging
import signal
import socket
import time
from collections.abc import Generator, Sequence
from types import FrameType

import uvicorn

from recipes.serve.app import Endpoint, build_app
from recipes.serve.async_engine import AsyncEngine
from recipes.serve.config import ServerConfig
from recipes.serve.door import Door
from recipes.serve.http_protocol import http_protocol
from recipes.serve.loading import Loaded
from recipes.serve.page import ClusterState, server_state
from recipes.serve.service import Service

log = logging.getLogger("recipes.serve")


class Server(uvicorn.Server):
    """Serves what is behind a `Door`.

    The first SIGTERM or SIGINT drains: the door closes, running requests may finish within
    ``drain_timeout``, and the exit code is 0. A second one stops at once.
    """

    def __init__(self, door: Door, more: Sequence[tuple[str, str, Endpoint]] = ()) -> None:
        config = door.config
        self._door = door
        super().__init__(
            uvicorn.Config(
                build_app(door, more),
                host=config.host,
                port=config.port,
                http=http_protocol(config),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=config.max_header_bytes,
                timeout_keep_alive=5,
                timeout_graceful_shutdown=max(1, int(config.drain_timeout)),
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, without raising the signal again: a drained server has exit code 0."""
        with super().capture_signals():
            yield
            self._captured_signals.clear()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # its own cancellations
        else:
            log.info("%s: finishing what runs", signal.Signals(sig).name)
        self._door.draining = True
        self.should_exit = True


def state_of(loaded: Loaded, service: Service) -> ClusterState:
    """What /cluster answers."""
    engine = loaded.engine
    return server_state(
        service.model_name,
        engine.stats(),
        service.recent,
        uptime_s=time.time() - service.created,
        is_alive=service.engine.is_alive,
        draining=service.draining,
        kv_tokens=engine.manager.num_usable_blocks * engine.config.block_size,
        weight_bytes=loaded.weight_bytes,
        tp=engine.config.tp,
        pp=engine.config.pp,
    )


def build_service(loaded: Loaded, config: ServerConfig) -> Service:
    """The state behind the routes, for a loaded model."""
    engine = loaded.engine
    limits = engine.config
    return Service(
        engine=AsyncEngine(
            engine,
            max_sequences=limits.max_waiting + limits.max_num_seqs,
            metrics=engine.metrics,
        ),
        tokenizer=loaded.tokenizer,
        config=config,
        model_name=config.model_name or loaded.name,
        max_model_len=engine.max_model_len,
        vocab_size=engine.vocab_size,
        metrics=engine.metrics,
        state=functools.partial(state_of, loaded),
    )


def greeting(service: Service, sock: socket.socket) -> str:
    """Where the server is, and two ways to try it."""
    host, port = sock.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    key = "KEY" if service.config.api_key else "unused"
    header = " -H 'Authorization: Bearer KEY'" if service.config.api_key else ""
    name = service.model_name
    return f"""serving    {url}/v1
page       {url}/

  curl {url}/v1/completions{header} -H 'Content-Type: application/json' \\
    -d '{{"model": "{name}", "prompt": "def add(a, b):", "max_tokens": 32}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="{key}")
  client.completions.create(model="{name}", prompt="def add(a, b):", max_tokens=32)
"""


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is known before a model is loaded.

    Raises:
        OSError: the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
