"""From a stream of deltas to a response: one JSON object, or events as they come."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from recipes.serve import errors
from recipes.serve.errors import ApiError
from recipes.serve.job import Job
from recipes.serve.outputs import Delta
from recipes.serve.service import Service, json_response
from recipes.serve.sse import DONE, KEEP_ALIVE, EventStream, frame, watch_disconnect
from recipes.serve.stream import Stream, StreamCancelled

log = logging.getLogger("recipes.serve")


class Writer(Protocol):
    """Puts deltas into the words of one endpoint."""

    def opening(self) -> list[Any]:
        """Events before the first delta."""
        ...

    def events(self, delta: Delta) -> list[Any]:
        """Events for one delta."""
        ...

    def closing(self) -> list[Any]:
        """Events after the last delta."""
        ...

    def whole(self) -> Any:
        """The answer as one object, from all deltas given to `add`."""
        ...

    def add(self, delta: Delta) -> None:
        """Collect a delta for `whole`."""
        ...


async def answer(
    service: Service,
    request: Request,
    jobs: Sequence[Job],
    writer: Writer,
    *,
    param: str,
    streaming: bool,
) -> Response | ASGIApp:
    """Submit the jobs of a request; the response to it.

    Args:
        param: field of the request that holds the prompt.
    """
    stream = await _submitted(service, request, jobs, param)
    if streaming:
        return EventStream(_frames(service, stream, writer), stream.cancel)
    watch = watch_disconnect(request.receive, stream.cancel)
    try:
        for delta in await stream.whole(limit=service.config.request_timeout):
            _raise_failure(delta)
            writer.add(delta)
    except StreamCancelled as error:
        raise _cancelled(str(error)) from None
    finally:
        watch.cancel()
        stream.cancel("stream_ended")
    return json_response(writer.whole())


async def _submitted(service: Service, request: Request, jobs: Sequence[Job], param: str) -> Stream:
    """Queue jobs, unless the client leaves first: a model may have to be loaded for them."""
    submitting = asyncio.create_task(service.submit(jobs, param))
    watch = watch_disconnect(request.receive, lambda _: submitting.cancel())
    try:
        return await submitting
    except asyncio.CancelledError:
        handler = asyncio.current_task()
        if handler is not None and handler.cancelling():
            raise
        raise _cancelled("client_left") from None
    finally:
        watch.cancel()


async def _frames(service: Service, stream: Stream, writer: Writer) -> AsyncIterator[bytes]:
    opening = writer.opening()
    try:
        config = service.config
        limits = {"limit": config.request_timeout, "heartbeat": config.keep_alive_comment}
        async for deltas in stream.batches(**limits):
            if not deltas:
                yield KEEP_ALIVE
                continue
            events, opening = opening, []
            for delta in deltas:
                _raise_failure(delta)
                events += writer.events(delta)
            if events:
                yield b"".join(map(frame, events))
        yield b"".join(map(frame, opening + writer.closing())) + DONE
    except StreamCancelled as error:
        if str(error) != "client_left":
            yield frame(_cancelled(str(error)).body()) + DONE
    except ApiError as error:
        yield frame(error.body()) + DONE
    except Exception:  # the status has been sent: without this frame the client sees a cut stream
        log.exception("stream of %s failed", ", ".join(stream.positions))
        yield frame(errors.internal().body()) + DONE


def _raise_failure(delta: Delta) -> None:
    if delta.finish_reason == "error" and delta.lost:
        raise errors.lost(delta.error or "what computed the request is gone")
    if delta.finish_reason == "error":
        raise errors.failed(delta.error or "the request failed")
    if delta.finish_reason == "cancelled":
        raise errors.unavailable("the request was cancelled by the server")


def _cancelled(cause: str) -> ApiError:
    if cause == "client_left":
        return ApiError(499, "the client left", code="client_left")
    if cause == "timeout":
        headers = {"x-should-retry": "false"}
        message = "the generation took longer than this server allows"
        return ApiError(504, message, code="timeout", headers=headers)
    return errors.unavailable("the server is shutting down")
