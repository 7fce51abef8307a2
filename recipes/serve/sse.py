"""Server-sent events: one JSON object per frame, cancelled when the reader goes."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from starlette.types import Receive, Scope, Send

KEEP_ALIVE = b": keep-alive\n\n"
DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


def frame(payload: Any) -> bytes:
    """One event.

    >>> frame({"text": "a"})
    b'data: {"text":"a"}\\n\\n'
    """
    return b"data: " + _encode(payload) + b"\n\n"


class EventStream:
    """An ASGI response that sends frames as they come.

    frames: the bytes to send, each item in one write.
    cancel: called with the cause when the client leaves or the stream ends; must be idempotent.

    A client that stops reading is cut off by the connection's own write deadline.
    """

    status_code = 200

    def __init__(self, frames: AsyncIterator[bytes], cancel: Callable[[str], object]) -> None:
        self._frames = frames
        self._cancel = cancel

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        watch = watch_disconnect(receive, self._cancel)
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for data in self._frames:
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watch.cancel()
            self._cancel("stream_ended")


def watch_disconnect(receive: Receive, cancel: Callable[[str], object]) -> asyncio.Task[None]:
    """Call ``cancel`` once the client has gone; the body must have been read before."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        cancel("client_left")

    return asyncio.create_task(watch())
