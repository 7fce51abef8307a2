"""POST /v1/chat/completions."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from recipes.serve.answer import answer
from recipes.serve.door import Door
from recipes.serve.errors import bad_request
from recipes.serve.job import Job
from recipes.serve.logprobs import chat_logprobs
from recipes.serve.outputs import Completion, Delta
from recipes.serve.protocol import ChatBody
from recipes.serve.service import Service
from recipes.serve.usage import Usage

RESERVED = frozenset(
    {"messages", "tools", "documents", "chat_template", "tokenize", "control_tokens", "self"}
)
"""Template arguments that a request may not set."""


async def chat_completions(door: Door, request: Request) -> Response | ASGIApp:
    """Complete a conversation."""
    body = await door.read(request, ChatBody)
    service = door.of(body.model, request.headers)
    params, wants_usage = body.params(), body.wants_usage()
    tokens = await service.encode_chat(body.plain_messages(), _template_options(body))
    job = Job(service.engine.new_id(), tokens, params, body.rank(), body.namespace())
    writer = ChatWriter(service, job, usage=wants_usage, token_ids=bool(body.return_token_ids))
    return await answer(
        service, request, [job], writer, param="messages", streaming=bool(body.stream)
    )


def _template_options(body: ChatBody) -> dict[str, Any]:
    options = dict(body.chat_template_kwargs or {})
    for name in options:
        if name in RESERVED:
            field = f"chat_template_kwargs.{name}"
            raise bad_request(f"{field}: expected a template switch, got a reserved name", field)
    prompt = body.add_generation_prompt
    return {"add_generation_prompt": True if prompt is None else prompt, **options}


class ChatWriter:
    """Chat completion objects and chunks."""

    def __init__(self, service: Service, job: Job, *, usage: bool, token_ids: bool) -> None:
        self._tokenizer = service.tokenizer
        self._params = job.params
        self._with_usage = usage
        self._with_token_ids = token_ids
        self._usage = Usage(len(job.prompt_tokens))
        self._completions = [Completion(index) for index in range(job.params.n)]
        self._head = {
            "id": f"chatcmpl-{job.request_id}-{service.created:x}",
            "created": int(time.time()),
            "model": service.model_name,
        }

    def opening(self) -> list[Any]:
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(index, delta) for index in range(self._params.n)]

    def events(self, delta: Delta) -> list[Any]:
        self._usage.add(delta)
        events = []
        if delta.text or delta.logprobs or (self._with_token_ids and delta.token_ids):
            more: dict[str, Any] = {}
            if delta.logprobs is not None:
                more["logprobs"] = chat_logprobs(delta.logprobs, self._tokenizer)
            if self._with_token_ids:
                more["token_ids"] = delta.token_ids
            events.append(self._chunk(delta.index, {"content": delta.text}, **more))
        if delta.finish_reason is not None:
            events.append(self._chunk(delta.index, {}, finish_reason=delta.finish_reason))
        return events

    def closing(self) -> list[Any]:
        if not self._with_usage:
            return []
        head = self._head | {"object": "chat.completion.chunk"}
        return [head | {"choices": [], "usage": self._usage.payload()}]

    def _chunk(self, index: int, delta: dict[str, str], **more: Any) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None} | more
        chunk = self._head | {"object": "chat.completion.chunk", "choices": [choice]}
        return chunk | {"usage": None} if self._with_usage else chunk

    def add(self, delta: Delta) -> None:
        self._usage.add(delta)
        self._completions[delta.index].add(delta)

    def whole(self) -> Any:
        choices = [self._choice(completion) for completion in self._completions]
        head = self._head | {"object": "chat.completion", "choices": choices}
        return head | {"usage": self._usage.payload()}

    def _choice(self, completion: Completion) -> dict[str, Any]:
        logprobs = None
        if self._params.logprobs is not None:
            logprobs = chat_logprobs(completion.logprobs or [], self._tokenizer)
        choice: dict[str, Any] = {
            "index": completion.index,
            "message": {"role": "assistant", "content": completion.text},
            "logprobs": logprobs,
            "finish_reason": completion.finish_reason,
        }
        if self._with_token_ids:
            choice["token_ids"] = completion.token_ids
        return choice
