"""What the endpoints share: the model's name and limits, tokenizing off the loop, submitting."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response

from blocks.sched import QueueFull
from recipes.model.tokenizer import Tokenizer
from recipes.serve import errors
from recipes.serve.admission import ContextTooLong, check_prompt
from recipes.serve.async_engine import ServingEngine
from recipes.serve.config import ServerConfig
from recipes.serve.door import Door
from recipes.serve.job import Job
from recipes.serve.metrics import ServiceMetrics
from recipes.serve.page import ClusterState, Observer, RecentRequests
from recipes.serve.stream import Stream

SHORT_TEXT = 4096
"""Characters or ids up to which a text is converted on the event loop (a millisecond)."""

log = logging.getLogger("recipes.serve")
Made = TypeVar("Made")


@dataclasses.dataclass
class Service(Door):
    """The state behind the routes of one model.

    engine: the running engine. tokenizer: the model's. config: the server's limits.
    model_name: what clients call it. max_model_len: longest prompt plus output [tokens].
    vocab_size: width of the logits. metrics: what /metrics shows.
    draining: set once the server is going down; new work is refused.
    recent: what became of the last minutes' requests.
    state: what /cluster shows; None for nothing.
    ttft_s, tpot_s: limits that its requests are judged by; None for none.
    """

    engine: ServingEngine
    tokenizer: Tokenizer
    config: ServerConfig
    model_name: str
    max_model_len: int
    vocab_size: int
    metrics: ServiceMetrics
    draining: bool = False
    recent: RecentRequests = dataclasses.field(default_factory=RecentRequests)
    state: Callable[["Service"], ClusterState] | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))
    helpers: concurrent.futures.Executor = dataclasses.field(
        default_factory=lambda: concurrent.futures.ThreadPoolExecutor(2, "tokenize"), repr=False
    )

    def of(self, name: str | None, headers: Mapping[str, str]) -> "Service":
        if name is not None and name != self.model_name:
            raise errors.model_not_found(name, self.model_name)
        return self

    def services(self) -> Sequence["Service"]:
        return [self]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.engine.start()
        yield
        await self.engine.stop()

    @property
    def is_alive(self) -> bool:
        return self.engine.is_alive

    def check_ready(self) -> int:
        stalled = self.engine.seconds_stalled()
        if self.draining:
            raise errors.unavailable("the server is shutting down")
        if not self.engine.is_alive:
            raise errors.unavailable("the engine has stopped")
        if stalled > self.config.stall_timeout:
            raise errors.unavailable(f"no step finished for {stalled:.0f} s with work pending")
        return self.engine.num_in_flight

    def render_metrics(self) -> bytes:
        return self.metrics.render()

    def cluster(self) -> ClusterState | None:
        return None if self.state is None else self.state(self)

    async def encode(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Token ids of texts; where they are long together, they are encoded in a helper thread."""

        def run() -> list[list[int]]:
            encode = self.tokenizer.encode
            return [encode(text, add_special_tokens=add_special_tokens) for text in texts]

        return await self._run(run, sum(map(len, texts)))

    async def encode_chat(
        self, messages: list[dict[str, str]], options: dict[str, Any]
    ) -> list[int]:
        """Token ids of a conversation in the model's chat format."""

        def run() -> list[int]:
            return self.tokenizer.apply_chat_template(messages, **options)

        try:
            return await self._aside(run)  # a template may take a while over few words
        except ValueError as error:  # the template's own refusal, or no template at all
            raise errors.bad_request(f"messages: {error}"[:500], "messages") from None

    async def decode(self, tokens: list[int]) -> str:
        """The text of token ids, control tokens included; long ones as in `encode`."""

        def run() -> str:
            return self.tokenizer.decode(tokens, skip_control_tokens=False)

        return await self._run(run, len(tokens))

    async def _run(self, function: Callable[[], Made], size: int) -> Made:
        return function() if size <= SHORT_TEXT else await self._aside(function)

    async def _aside(self, function: Callable[[], Made]) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self.helpers, function)

    async def submit(self, jobs: Sequence[Job], param: str) -> Stream:
        """Check and queue jobs, all or none; ``param`` is the field that holds the prompt."""
        try:
            if self.draining:
                raise errors.unavailable("the server is shutting down")
            if not self.engine.is_alive:
                raise errors.unavailable("the engine has stopped")
            for job in jobs:
                check_prompt(
                    job.prompt_tokens,
                    job.params,
                    vocab_size=self.vocab_size,
                    max_model_len=self.max_model_len,
                )
            return await self._observed(jobs)
        except ContextTooLong as error:
            raise errors.context_length_exceeded(
                error.limit, error.prompt, error.wanted, param
            ) from None
        except QueueFull as error:
            self.metrics.refused(429)
            self.recent.arrived(self.model_name)
            self.recent.refused(self.model_name, limited=False)
            raise errors.overloaded(f"The server is busy ({error}); try again shortly.") from None
        except ValueError as error:
            message = str(error)
            field = message.split(":")[0].split()[0]
            raise errors.bad_request(message, param if field == "prompt" else field) from None

    async def _observed(self, jobs: Sequence[Job]) -> Stream:
        stream = await self.engine.submit(jobs)
        self.recent.arrived(self.model_name)
        observer = Observer(
            self.recent,
            self.model_name,
            stream.num_samples,
            stream.started,
            ttft_s=self.ttft_s,
            tpot_s=self.tpot_s,
        )
        stream.observe(observer)
        stream.on_restart(observer.restart)
        return stream


def json_response(payload: Any, status: int = 200) -> Response:
    body = msgspec.json.encode(payload)
    return Response(body, status_code=status, media_type="application/json")
