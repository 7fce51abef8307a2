"""uvicorn's h11 protocol with the deadlines and limits it lacks: slow clients are cut off.

Stock uvicorn waits forever for the end of a request head, for the rest of an unwanted body and for
a reader that has stopped reading. Here each of the three has a timer, errors before the application
is reached have the OpenAI shape, and the number of connections is capped.
"""

import asyncio
import sys
from typing import Any

import h11
import msgspec
from uvicorn.protocols.http.h11_impl import H11Protocol

from recipes.serve.config import ServerConfig
from recipes.serve.errors import ApiError, unavailable


def http_protocol(config: ServerConfig) -> type[H11Protocol]:
    """The protocol class for ``uvicorn.Config(http=...)`` with this server's limits."""

    class DeadlineProtocol(H11Protocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._reading: asyncio.TimerHandle | None = None
            self._writing: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._reading = self.loop.call_later(config.header_timeout, transport.abort)
            if len(self.connections) > config.max_connections:
                error = unavailable("too many open connections; try again shortly")
                transport.write(_plain_response(error))
                transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch_reading()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch_reading()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stop(self._writing)
            self._writing = self.loop.call_later(config.write_timeout, self.transport.abort)

        def resume_writing(self) -> None:
            self._stop(self._writing)
            self._writing = None
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop(self._reading)
            self._stop(self._writing)
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            hint = getattr(sys.exc_info()[1], "error_status_hint", 400)
            if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.abort()  # too late for an answer
                return
            error = ApiError(hint, msg, code="invalid_http")
            self.transport.write(_plain_response(error))
            self.transport.close()

        def _watch_reading(self) -> None:
            """A timer runs while the client owes us bytes that no application code waits for."""
            head_owed = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
            answered = self.cycle is not None and self.cycle.response_complete
            body_owed = self.conn.their_state is h11.SEND_BODY and answered
            if not (head_owed or body_owed):
                self._stop(self._reading)
                self._reading = None
            elif self._reading is None:
                limit = config.header_timeout if head_owed else config.body_timeout
                self._reading = self.loop.call_later(limit, self.transport.abort)

        @staticmethod
        def _stop(timer: asyncio.TimerHandle | None) -> None:
            if timer is not None:
                timer.cancel()

    return DeadlineProtocol


def _plain_response(error: ApiError) -> bytes:
    """A whole HTTP response, for where there is no application to write one."""
    body = msgspec.json.encode(error.body())
    extra = "".join(f"{name}: {value}\r\n" for name, value in error.headers.items())
    head = (
        f"HTTP/1.1 {error.status} Error\r\ncontent-type: application/json\r\n{extra}"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body
