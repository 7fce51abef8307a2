"""``Pace``: how fast steps go."""

import contextlib
import time
from collections.abc import Iterator

import torch

from recipes.train.meter import measured_peak, step_flops
from recipes.train.trainer import Trainer


class Pace:
    """Tokens a second in steps alone, and what share of the machine that is.

    smooth: an average that forgets, for the time to go.
    """

    def __init__(self, trainer: Trainer) -> None:
        config = trainer.config
        self._trainer, self._first, self._busy_s = trainer, trainer.step, 0.0
        self.smooth = 0.0
        self._flops = step_flops(trainer.replica.model, config.batch_size, config.context_len)
        dtype = getattr(torch, config.dtype)
        peak = measured_peak(config.device, dtype, torch.get_num_threads())
        self._peak_flops = peak * trainer.place.layout.num_ranks

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Around a step."""
        started = time.perf_counter()
        yield
        self._busy_s += time.perf_counter() - started

    def tokens_per_s(self) -> float:
        """Since the last call."""
        config, step = self._trainer.config, self._trainer.step
        rate = (step - self._first) * config.tokens_per_step / self._busy_s
        early = self.smooth == 0.0 or step <= 2 * config.log_every
        self.smooth = rate if early else 0.7 * self.smooth + 0.3 * rate
        self._first, self._busy_s = step, 0.0
        return rate

    def mfu(self, tokens_per_s: float) -> float:
        """Model FLOPs a second over what all processes' processors reach in a matrix product."""
        per_token = self._flops / self._trainer.config.tokens_per_step
        return tokens_per_s * per_token / self._peak_flops
