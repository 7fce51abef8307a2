"""POST /v1/completions."""

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from recipes.serve.answer import answer
from recipes.serve.door import Door
from recipes.serve.job import Job
from recipes.serve.logprobs import completion_logprobs
from recipes.serve.outputs import Completion, Delta, TokenLogprob
from recipes.serve.protocol import CompletionBody
from recipes.serve.service import Service
from recipes.serve.usage import Usage


async def completions(door: Door, request: Request) -> Response | ASGIApp:
    """Continue one text or many."""
    body = await door.read(request, CompletionBody)
    service = door.of(body.model, request.headers)
    params, wants_usage = body.params(), body.wants_usage()
    jobs = [
        Job(service.engine.new_id(), prompt, params, body.rank(), body.namespace())
        for prompt in await _prompts(service, body)
    ]
    writer = CompletionWriter(service, jobs, body, usage=wants_usage)
    return await answer(service, request, jobs, writer, param="prompt", streaming=bool(body.stream))


async def _prompts(service: Service, body: CompletionBody) -> list[list[int]]:
    """Token ids of all prompts, be they texts or such ids already."""
    given = body.prompts()
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    if texts:
        special = body.add_special_tokens is not False
        return await service.encode(texts, add_special_tokens=special)
    return [prompt for prompt in given if not isinstance(prompt, str)]


class CompletionWriter:
    """Text completion objects and chunks; choice ``prompt * n + sample``."""

    def __init__(
        self, service: Service, jobs: list[Job], body: CompletionBody, *, usage: bool
    ) -> None:
        self._tokenizer = service.tokenizer
        self._jobs = jobs
        self._position = {job.request_id: at for at, job in enumerate(jobs)}
        self._n = jobs[0].params.n
        self._echo = bool(body.echo)
        self._scores_only = body.scores_only
        self._logprobs = body.logprobs is not None
        self._with_token_ids = bool(body.return_token_ids)
        self._with_usage = usage
        self._usage = Usage(sum(len(job.prompt_tokens) for job in jobs))
        self._completions = [Completion(index) for index in range(len(jobs) * self._n)]
        self._offsets: dict[int, int] = {}
        self._prompts: dict[int, list[TokenLogprob | None]] = {}
        self._head = {
            "id": f"cmpl-{jobs[0].request_id}-{service.created:x}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model_name,
        }

    def _choice_index(self, delta: Delta) -> int:
        return self._position[delta.request_id] * self._n + delta.index

    def _take(self, delta: Delta) -> Delta:
        """The delta without the token that ``max_tokens: 0`` makes us throw away."""
        if self._scores_only:
            delta.token_ids, delta.text, delta.logprobs = [], "", None
            delta.finish_reason = delta.finish_reason and "length"
        self._usage.add(delta)
        if delta.prompt_logprobs is not None:
            self._prompts[self._position[delta.request_id]] = delta.prompt_logprobs
        return delta

    def opening(self) -> list[Any]:
        return []

    def events(self, delta: Delta) -> list[Any]:
        delta = self._take(delta)
        index = self._choice_index(delta)
        first = index not in self._offsets
        bare = self._with_token_ids and delta.token_ids  # tokens whose text is still to come
        told = delta.text or delta.finish_reason or delta.logprobs or bare
        if not (told or (first and self._echo)):
            return []
        with_prompt = first and self._echo
        choice = self._choice(index, delta, with_prompt=with_prompt)
        chunk = self._head | {"choices": [choice]}
        return [chunk | {"usage": None} if self._with_usage else chunk]

    def closing(self) -> list[Any]:
        if not self._with_usage:
            return []
        return [self._head | {"choices": [], "usage": self._usage.payload()}]

    def add(self, delta: Delta) -> None:
        delta = self._take(delta)
        self._completions[self._choice_index(delta)].add(delta)

    def whole(self) -> Any:
        choices = [
            self._choice(completion.index, completion, with_prompt=self._echo)
            for completion in self._completions
        ]
        return self._head | {"choices": choices, "usage": self._usage.payload()}

    def _choice(self, index: int, part: Delta | Completion, *, with_prompt: bool) -> dict[str, Any]:
        """A choice, whole or its next piece; ``with_prompt`` puts the prompt before it."""
        tokens: list[TokenLogprob | None] = list(part.logprobs or [])
        text, token_ids = part.text, [t.token_id for t in part.logprobs or []]
        offset = self._offsets.setdefault(index, 0)
        if with_prompt:
            prompt = self._jobs[index // self._n].prompt_tokens
            text = self._tokenizer.decode(prompt, skip_control_tokens=True) + text
            tokens = self._prompts.get(index // self._n, []) + tokens
            token_ids = prompt + token_ids
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "logprobs": None,
            "finish_reason": part.finish_reason,
        }
        if self._logprobs:
            found = completion_logprobs(tokens, token_ids, self._tokenizer, offset)
            choice["logprobs"] = found
            self._offsets[index] = offset + sum(map(len, found["tokens"]))
        if self._with_token_ids:
            choice["token_ids"] = part.token_ids
        return choice
