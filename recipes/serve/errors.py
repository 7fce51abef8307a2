"""Errors as OpenAI's clients expect them: a status, and a body with message, type, param, code."""

from typing import Any

import msgspec
from starlette.responses import Response


class ApiError(Exception):
    """An error that is answered to the client as it stands.

    status: HTTP status. message: one sentence with expected and got. code: a stable word.
    param: the field at fault. headers: further response headers. more: further fields of the error.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        more: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.headers = headers or {}
        self.more = more or {}

    def body(self) -> dict[str, dict[str, Any]]:
        return {
            "error": {
                "message": self.message,
                "type": _kind(self.status),
                "param": self.param,
                "code": self.code,
                **self.more,
            }
        }

    def response(self) -> Response:
        return Response(
            msgspec.json.encode(self.body()),
            status_code=self.status,
            headers=self.headers,
            media_type="application/json",
        )


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    return ApiError(400, message, code=code, param=param)


def unsupported(param: str, hint: str = "leave it out") -> ApiError:
    message = f"{param} is not supported by this server; {hint}"
    return ApiError(400, message, code="unsupported_parameter", param=param)


def context_length_exceeded(limit: int, prompt: int, wanted: int | None, param: str) -> ApiError:
    asked = f"{prompt} in the prompt" + (f" and {wanted} for the completion" if wanted else "")
    total = prompt + (wanted or 1)
    message = (
        f"This model's maximum context length is {limit} tokens. However, you requested {total} "
        f"tokens ({asked}). Please shorten the prompt or the completion."
    )
    return ApiError(400, message, code="context_length_exceeded", param=param)


def model_not_found(name: str, known: str) -> ApiError:
    shown = name if len(name) <= 100 else name[:100] + "..."
    message = f"The model {shown!r} does not exist; this server has {known!r}."
    return ApiError(404, message, code="model_not_found", param="model")


def overloaded(message: str, retry_after: int = 1) -> ApiError:
    headers = {"retry-after": str(retry_after)}
    return ApiError(429, message, code="rate_limit_exceeded", headers=headers)


def unavailable(message: str, retry_after: int = 5) -> ApiError:
    headers = {"retry-after": str(retry_after)}
    return ApiError(503, message, code="server_unavailable", headers=headers)


def failed(message: str) -> ApiError:
    """The request itself made the engine fail: clients must not send it again on their own."""
    return ApiError(500, message, code="engine_error", headers={"x-should-retry": "false"})


def lost(message: str) -> ApiError:
    """What computed the request is gone, through no fault of the request: it may be sent again."""
    return ApiError(503, message, code="group_lost", headers={"retry-after": "1"})


def internal() -> ApiError:
    """Something nobody foresaw; what it was stands in the log only."""
    message = "internal error; the server's log has more"
    return ApiError(500, message, code="internal_error")


def _kind(status: int) -> str:
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    if status >= 500:
        return "server_error"
    return kinds.get(status, "invalid_request_error")
