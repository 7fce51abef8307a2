"""What every request passes: an id, the browser rules, and the key.

Pure ASGI: starlette's ``BaseHTTPMiddleware`` would hide the client's leaving from the application.
"""

import hashlib
import hmac
import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recipes.serve.config import ServerConfig, is_loopback_address
from recipes.serve.errors import ApiError

OPEN_PATHS = frozenset({"/health", "/"})
"""Routes that need no key; everything else, known or not, does."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Gate:
    """The outermost application: refuses what must not come in.

    Every response carries ``x-request-id``: the client's own, if it is well formed, else a fresh
    one. It is shown and logged, and never used as a key.
    """

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app = app
        self._config = config
        key = config.api_key
        self._digest = None if key is None else hashlib.sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _single_headers(scope)
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            self._check_browser(headers)
            self._check_key(scope["path"], headers)
            await self._app(scope, receive, send_with_id)
        except ApiError as error:
            await error.response()(scope, receive, send_with_id)

    def _check_browser(self, headers: dict[str, str | None]) -> None:
        """On a loopback bind a web page must not reach us, by name tricks or cross-origin calls."""
        if not self._config.is_loopback:
            return
        allowed = {"localhost", "127.0.0.1", "[::1]", "testserver", *self._config.allowed_hosts}
        host = _host_name(headers.get("host") or "")
        if host not in allowed and not is_loopback_address(host):
            message = f"host: {host[:80]!r} is not served; start with --allow-host to add it"
            raise ApiError(403, message, code="host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and _host_name(origin.partition("://")[2]) not in allowed:
            message = "origin: requests from other web pages are not served"
            raise ApiError(403, message, code="origin_not_allowed")

    def _check_key(self, path: str, headers: dict[str, str | None]) -> None:
        if self._digest is None or path in OPEN_PATHS:
            return
        scheme, _, key = (headers.get("authorization") or "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        same = hmac.compare_digest(given, self._digest)
        if not (same and scheme.lower() == "bearer"):
            message = "Incorrect or missing API key; send it as 'Authorization: Bearer KEY'."
            headers_out = {"www-authenticate": "Bearer"}
            raise ApiError(401, message, code="invalid_api_key", headers=headers_out)


def _single_headers(scope: Scope) -> dict[str, str | None]:
    """Headers by name; one that occurs twice has no value anybody may rely on."""
    headers: dict[str, str | None] = {}
    for raw_name, raw_value in scope["headers"]:
        name = raw_name.decode("latin-1").lower()
        headers[name] = None if name in headers else raw_value.decode("latin-1")
    return headers


def _request_id(headers: dict[str, str | None]) -> str:
    given = headers.get("x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given
    return f"req-{secrets.token_hex(12)}"


def _host_name(host: str) -> str:
    """The host without its port, in lower case."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()
