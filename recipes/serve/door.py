"""``Door``: what the routes stand on, whether one model is behind them or many."""

import abc
import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from recipes.serve.config import ServerConfig
from recipes.serve.errors import ApiError
from recipes.serve.page import ClusterState
from recipes.serve.protocol import decode

if TYPE_CHECKING:
    from recipes.serve.service import Service

Body = TypeVar("Body", bound=msgspec.Struct)


class Door(abc.ABC):
    """A server's front.

    config: its limits. draining: set once the server is going down; new work is refused.
    """

    config: ServerConfig
    draining: bool

    @abc.abstractmethod
    def of(self, name: str | None, headers: Mapping[str, str]) -> "Service":
        """Who answers a request for a model.

        Raises:
            ApiError: 404, there is no such model, or 400, none is named and there are several.
        """

    @abc.abstractmethod
    def services(self) -> Sequence["Service"]:
        """All models, in the order they are shown."""

    @abc.abstractmethod
    def running(self) -> AbstractAsyncContextManager[None]:
        """The life of what is behind the door, on the running event loop."""

    @abc.abstractmethod
    def check_ready(self) -> int:
        """Samples in flight.

        Raises:
            ApiError: 503, new work would not be served.
        """

    @property
    @abc.abstractmethod
    def is_alive(self) -> bool:
        """Whether the process is worth keeping."""

    @abc.abstractmethod
    def render_metrics(self) -> bytes:
        """The Prometheus text."""

    @abc.abstractmethod
    def cluster(self) -> ClusterState | None:
        """What the page shows; None for nothing."""

    async def read(self, request: Request, kind: type[Body]) -> Body:
        """The request's body, bounded in size and time, decoded."""
        content = request.headers.get("content-type", "application/json")
        if content.partition(";")[0].strip().lower() != "application/json":
            message = f"content-type: expected application/json, got {content[:80]!r}"
            raise ApiError(415, message, code="unsupported_media_type")
        try:
            async with asyncio.timeout(self.config.body_timeout):
                raw = await self._read_limited(request)
        except TimeoutError:
            raise ApiError(408, "body: not received in time", code="body_timeout") from None
        except ClientDisconnect:
            raise ApiError(499, "the client left", code="client_left") from None
        return decode(raw, kind)

    async def _read_limited(self, request: Request) -> bytes:
        limit = self.config.max_body_bytes
        message = f"body: expected at most {self.config.body_limit}, got more"
        too_large = ApiError(413, message, code="body_too_large")
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced[:20]) > limit:
            raise too_large
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > limit:
                raise too_large
        return bytes(raw)
