"""``StepTimer``: steps of an engine, made up and timed."""

import itertools
import random
import time
from collections.abc import Callable
from typing import Any

from blocks.sched import State
from recipes.place.measure.peak_bytes import PeakBytes
from recipes.serve.engine import Engine
from recipes.serve.job import Job
from recipes.serve.sampling_params import SamplingParams


class StepTimer:
    """Drives an engine that nobody else uses through steps of known content.

    Args:
        engine: idle.
        clock: what seconds are read from, around each step.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> None:
        self._engine, self._clock = engine, clock
        self._ids = itertools.count()
        self._asked: list[str] = []
        self._draws = random.Random(0)

    def prefill_s(self, num_tokens: int) -> float:
        """Seconds of a step over one prompt."""
        self._add(num_tokens, 1)
        seconds = self._step()
        self._finish()
        return seconds

    def decode_s(self, batch_size: int, context_len: int, num_steps: int) -> list[float]:
        """Seconds of steps that give each of ``batch_size`` sequences a token.

        Their contexts are ``context_len`` on average over the steps, or shorter by the steps that
        computing all prompts took.
        """
        budget = self._engine.config.token_budget
        ahead = -(-batch_size * context_len // max(1, budget - batch_size))
        prompt_len = max(1, context_len - ahead - num_steps // 2)
        for _ in range(batch_size):
            self._add(prompt_len, ahead + num_steps + 2)
        while self._num_decoding() < batch_size:
            self._step()
        seconds = [self._step() for _ in range(num_steps)]
        self._finish()
        return seconds

    def peak_bytes(self, batch_size: int, context_len: int) -> int:
        """Most bytes that a step holds beside weights and cache: of steps over the longest prompt,
        over as many prompts as may run and as many tokens as they may have, and of a decode step.
        """
        config = self._engine.config
        longest = min(config.token_budget, self._engine.max_model_len - 1)
        with PeakBytes() as followed:
            self.prefill_s(longest)
            prompt_len = max(1, min(config.token_budget // config.max_num_seqs, longest))
            for _ in range(config.max_num_seqs):
                self._add(prompt_len, 1, temperature=1.0, top_p=0.9)
            self._step()
            self._finish()
            self.decode_s(batch_size, context_len, 1)
        return followed.peak_bytes

    def _add(self, prompt_len: int, max_tokens: int, **draw: float) -> None:
        last = self._engine.vocab_size - 1
        prompt = [self._draws.randint(0, last) for _ in range(prompt_len)]
        how: dict[str, Any] = {"temperature": 0.0, **draw}
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, **how)
        self._asked.append(f"timed-{next(self._ids)}")
        self._engine.add(Job(self._asked[-1], prompt, params))

    def _step(self) -> float:
        began = self._clock()
        deltas = self._engine.step()
        seconds = self._clock() - began
        for delta in deltas:
            if delta.error is not None:
                raise RuntimeError(f"a timed step failed: {delta.error}")
        return seconds

    def _num_decoding(self) -> int:
        scheduler = self._engine.scheduler
        live = [one for name in self._asked for one in scheduler.sequences(name)]
        return sum(one.state is State.DECODING for one in live)

    def _finish(self) -> None:
        """Forget what was made up."""
        for name in self._asked:
            self._engine.cancel(name)
        self._asked.clear()
