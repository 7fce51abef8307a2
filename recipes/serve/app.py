"""The routes: which path is answered by whom."""

import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from recipes.serve import errors
from recipes.serve.chat import chat_completions
from recipes.serve.completions import completions
from recipes.serve.door import Door
from recipes.serve.errors import ApiError
from recipes.serve.middleware import Gate
from recipes.serve.page import live_page, page_headers
from recipes.serve.protocol import DetokenizeBody, TokenizeBody
from recipes.serve.service import Service, json_response

log = logging.getLogger("recipes.serve")
Endpoint = Callable[[Door, Request], Awaitable[Any]]


def build_app(door: Door, more: Sequence[tuple[str, str, Endpoint]] = ()) -> ASGIApp:
    """The whole ASGI application; what is behind the door lives as long as the server.

    Args:
        more: further routes: method, path, who answers.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with door.running():
            yield

    table: list[tuple[str, str, Endpoint]] = [
        *more,
        ("POST", "/v1/chat/completions", chat_completions),
        ("POST", "/v1/completions", completions),
        ("GET", "/v1/models", models),
        ("GET", "/v1/models/{name:path}", one_model),
        ("POST", "/tokenize", tokenize),
        ("POST", "/detokenize", detokenize),
        ("GET", "/health", health),
        ("GET", "/ready", ready),
        ("GET", "/metrics", metrics),
        ("GET", "/", page),
        ("GET", "/cluster", cluster),
    ]
    routes = [
        Route(path, functools.partial(_contained, endpoint, door), methods=[method])
        for method, path, endpoint in table
    ]
    handlers: Any = {ApiError: _api_error, HTTPException: _http_error}
    return Gate(
        Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan), door.config
    )


async def _contained(endpoint: Endpoint, door: Door, request: Request) -> Any:
    """Run an endpoint; what it did not foresee is logged and answered without details."""
    try:
        return await endpoint(door, request)
    except ApiError:
        raise
    except Exception:
        log.exception("request %s failed", request.state.request_id)
        raise errors.internal() from None


async def models(door: Door, request: Request) -> Response:
    """GET /v1/models."""
    return json_response({"object": "list", "data": [_model(s) for s in door.services()]})


async def one_model(door: Door, request: Request) -> Response:
    """GET /v1/models/NAME."""
    return json_response(_model(door.of(request.path_params["name"], request.headers)))


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": service.created,
        "owned_by": "llm-blocks",
        "max_model_len": service.max_model_len,
    }


async def tokenize(door: Door, request: Request) -> Response:
    """POST /tokenize: the token ids of a text or a conversation."""
    body = await door.read(request, TokenizeBody)
    service = door.of(body.model, request.headers)
    if (body.prompt is None) == (body.messages is None):
        raise errors.bad_request("prompt: expected either prompt or messages", "prompt")
    if body.prompt is not None:
        texts = [body.prompt]
        (tokens,) = await service.encode(texts, add_special_tokens=body.add_special_tokens)
    else:
        messages = [m.plain(f"messages[{at}]") for at, m in enumerate(body.messages or [])]
        options = {"add_generation_prompt": body.add_generation_prompt}
        tokens = await service.encode_chat(messages, options)
    found: dict[str, Any] = {"tokens": tokens, "count": len(tokens)}
    if body.return_token_strs:
        decode = service.tokenizer.decode
        found["token_strs"] = [decode([token], skip_control_tokens=False) for token in tokens]
    return json_response(found | {"max_model_len": service.max_model_len})


async def detokenize(door: Door, request: Request) -> Response:
    """POST /detokenize: the text of token ids."""
    body = await door.read(request, DetokenizeBody)
    service = door.of(body.model, request.headers)
    if body.tokens and not 0 <= min(body.tokens) <= max(body.tokens) < service.vocab_size:
        message = f"tokens: expected token ids from 0 to {service.vocab_size - 1}, got another"
        raise errors.bad_request(message, "tokens")
    return json_response({"prompt": await service.decode(body.tokens)})


async def health(door: Door, request: Request) -> Response:
    """GET /health: whether the process is worth keeping; needs no key."""
    alive = door.is_alive
    return json_response({"status": "ok" if alive else "dead"}, 200 if alive else 503)


async def ready(door: Door, request: Request) -> Response:
    """GET /ready: whether new work would be served, judged by the progress of what is pending."""
    return json_response({"status": "ready", "in_flight": door.check_ready()})


async def metrics(door: Door, request: Request) -> Response:
    """GET /metrics: Prometheus text."""
    return Response(door.render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


async def page(door: Door, request: Request) -> Response:
    """GET /: a page for people; it holds no data, so it needs no key, and asks /cluster for it."""
    return Response(live_page(), media_type="text/html", headers=page_headers())


async def cluster(door: Door, request: Request) -> Response:
    """GET /cluster: what the page shows."""
    state = door.cluster()
    if state is None:
        raise errors.unavailable("this server shows no state")
    return json_response(state)


async def _api_error(request: Request, error: ApiError) -> Response:
    return error.response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    if error.status_code == 404:
        message = f"there is no {request.url.path[:100]!r} here; see the README for the routes"
        return ApiError(404, message, code="not_found").response()
    allowed = dict(error.headers or {})
    message = f"{request.method} is not answered here"
    return ApiError(
        error.status_code, message, code="method_not_allowed", headers=allowed
    ).response()
