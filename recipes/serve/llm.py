"""Offline generation: a list of prompts in, a list of finished answers out."""

import itertools
import operator
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from blocks._checks import check, fail
from recipes.serve.config import EngineConfig
from recipes.serve.job import Job
from recipes.serve.loading import Loaded, load
from recipes.serve.outputs import Completion, RequestOutput
from recipes.serve.sampling_params import SamplingParams

Prompt = str | Sequence[int]
Messages = Sequence[Mapping[str, Any]]


class LLM:
    """A model with its engine, for use without a server.

    Args:
        model: a Hugging Face folder; None for the bundled model.
        loaded: an engine that exists already, instead of ``model``.
        settings: fields of `EngineConfig` (``kv_bytes``, ``max_model_len``, ``tp``, ...).

    With ``tp`` or ``pp`` the model runs in processes of its own; ``close`` ends them, as do the end
    of a ``with`` block and of this process.

    Raises:
        ValueError: a folder or setting that cannot work.

    >>> llm = LLM()  # doctest: +SKIP
    >>> llm.generate("def add(a, b):", SamplingParams(max_tokens=8, temperature=0))[0].text
    ... # doctest: +SKIP
    """

    def __init__(
        self, model: str | Path | None = None, *, loaded: Loaded | None = None, **settings: Any
    ) -> None:
        self.loaded = loaded or load(model, EngineConfig(**settings))
        self.engine = self.loaded.engine
        self.tokenizer = self.loaded.tokenizer
        self._num_requests = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[RequestOutput]:
        """Complete prompts, batched continuously; answers come back in the order of the prompts.

        Args:
            prompts: a text, a list of token ids, or a list of either.
            params: one for all prompts, or one each; None for the defaults.
            progress: show a line on standard error while it runs.

        Raises:
            ValueError: a prompt that cannot be served; then nothing has run.
        """
        batch = [self._encode(prompt) for prompt in _as_list(prompts)]
        return self._run(batch, params, progress)

    def chat(
        self,
        conversations: Messages | Sequence[Messages],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
        **template: Any,
    ) -> list[RequestOutput]:
        """Answer conversations in the model's chat format.

        Args:
            conversations: a list of ``{"role", "content"}`` messages, or a list of such lists.
            params, progress: as for ``generate``.
            template: switches for the chat template.
        """
        if conversations and isinstance(conversations[0], Mapping):
            conversations = [conversations]  # pyright: ignore[reportAssignmentType]
        options: dict[str, Any] = {"add_generation_prompt": True, **template}
        batch = [
            self.tokenizer.apply_chat_template(messages, **options)  # pyright: ignore
            for messages in conversations
        ]
        return self._run(batch, params, progress)

    def close(self) -> None:
        """End the processes of the model, where it has any."""
        self.engine.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        try:
            if isinstance(prompt, bytes):
                raise TypeError
            return [operator.index(token) for token in prompt]
        except TypeError:
            raise fail("prompts", "texts or lists of token ids", repr(prompt)[:80]) from None

    def _run(
        self,
        prompts: list[list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        progress: bool,
    ) -> list[RequestOutput]:
        jobs = self._jobs(prompts, params)
        answers = {
            job.request_id: RequestOutput(
                job.request_id, job.prompt_tokens, [Completion(i) for i in range(job.params.n)]
            )
            for job in jobs
        }
        line = Progress(sum(job.params.n for job in jobs), sys.stderr if progress else None)
        waiting = iter(jobs)
        try:
            self._feed(waiting)
            while self.engine.has_work():
                for delta in self.engine.step():
                    answers[delta.request_id].add(delta)
                    line.count(len(delta.token_ids), delta.finish_reason is not None)
                self._feed(waiting)
        except BaseException:  # Ctrl-C too, in the middle of a step: leave a usable engine
            self.engine.abort_all("interrupted")
            raise
        finally:
            line.close()
        return list(answers.values())

    def _jobs(
        self,
        prompts: list[list[int]],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[Job]:
        """Jobs for all prompts, each checked, before any of them runs."""
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        check(len(params) == len(prompts), "params", f"one or {len(prompts)}", len(params))
        jobs = []
        for prompt, one in zip(prompts, params, strict=True):
            self._num_requests += 1
            jobs.append(Job(f"offline-{self._num_requests}", prompt, one))
            self.engine.check(jobs[-1])
        return jobs

    def _feed(self, waiting: Iterator[Job]) -> None:
        """Keep the scheduler's queue filled without running into its bound."""
        scheduler = self.engine.scheduler
        room = self.engine.config.max_waiting - scheduler.num_waiting
        for job in itertools.islice(waiting, max(room, 0)):
            self.engine.add(job)


class Progress:
    """One line that counts finished samples and tokens.

    total: samples to finish. out: where to write; None to stay silent.
    """

    def __init__(self, total: int, out: TextIO | None) -> None:
        self._total, self._out = total, out
        self._done = self._tokens = 0
        self._started = self._shown = time.perf_counter()

    def count(self, tokens: int, finished: bool) -> None:
        self._tokens += tokens
        self._done += finished
        now = time.perf_counter()
        if self._out is not None and now - self._shown > 0.2:
            self._shown = now
            self._show(now)

    def _show(self, now: float) -> None:
        assert self._out is not None
        rate = self._tokens / max(now - self._started, 1e-9)
        done = f"{self._done}/{self._total} samples"
        self._out.write(f"\r{done}, {self._tokens} tokens, {rate:.1f} tokens/s ")
        self._out.flush()

    def close(self) -> None:
        if self._out is not None:
            self._show(time.perf_counter())
            self._out.write("\n")


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str | bytes) or not isinstance(prompts, Sequence):
        return [prompts]  # bytes and None are refused with the other prompts that are none
    if prompts and all(isinstance(item, int) for item in prompts):
        return [prompts]  # pyright: ignore[reportReturnType]
    if any(isinstance(item, int) for item in prompts):
        raise fail("prompts", "texts or lists of token ids", "a mix of ids and prompts")
    return list(prompts)  # pyright: ignore[reportReturnType]
