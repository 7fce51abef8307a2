"""``IsolatedTransport``: nobody at the other ends, for a rank that is measured alone."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from blocks.pipeline.action import Action
from blocks.pipeline.held_bytes import HeldBytes
from blocks.pipeline.trace import TraceEvent
from blocks.pipeline.transport import TensorSpec


class _Done:
    """A transfer that needs no waiting."""

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self._make = make

    def wait(self, timeout_s: float) -> Tensor:
        return self._make()

    def done(self) -> bool:
        return True


class IsolatedTransport:
    """A transport with nobody at the other ends, which also times: the executor tells it before
    every action and once after the last, and there it waits for the device."""

    def __init__(self, rank: int, num_ranks: int, device: torch.device) -> None:
        self.rank, self.num_ranks = rank, num_ranks
        self._device = device
        self._answers: dict[TensorSpec, Tensor] = {}
        self._events: list[TraceEvent] = []
        self._waiting: TraceEvent | None = None
        self._since = self._since_cpu = self._zero = self._base = 0
        self._held: HeldBytes | None = None

    def begin(self, *, counts_bytes: bool) -> None:
        """Begin a step."""
        self._events, self._waiting = [], None
        if counts_bytes and self._device.type == "cpu":
            self._held = HeldBytes()
            self._held.__enter__()
        self._base = self._count()
        self._synchronize()
        self._zero = self._since = time.monotonic_ns()
        self._since_cpu = time.thread_time_ns()

    def finish(self) -> list[TraceEvent]:
        """End a step: its events."""
        if self._held is not None:
            self._held.__exit__(None, None, None)
            self._held = None
        return self._events

    def on_event(self, event: TraceEvent) -> None:
        self._waiting = event

    def post_status(self, text: str) -> None:
        """An action ends here and another begins."""
        self._synchronize()
        now, cpu = time.monotonic_ns(), time.thread_time_ns()
        if self._waiting is not None:
            self._events.append(
                self._waiting._replace(
                    start_ns=self._since - self._zero,
                    end_ns=now - self._zero,
                    cpu_ns=cpu - self._since_cpu,
                    live_bytes=max(self._count() - self._base, 0),
                )
            )
            self._waiting = None
        self._since, self._since_cpu = time.monotonic_ns(), time.thread_time_ns()

    def _count(self) -> int:
        if self._held is not None:
            return self._held.count()
        if self._device.type == "cpu":
            return 0
        return torch.accelerator.memory_allocated(self._device)

    def _synchronize(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def send(self, tensor: Tensor, target_rank: int, action: Action) -> _Done:
        return _Done(lambda: tensor)

    def receive(self, spec: TensorSpec, source_rank: int, action: Action) -> _Done:
        return _Done(lambda: self._answer(spec))

    def _answer(self, spec: TensorSpec) -> Tensor:
        """A new tensor, with the numbers that all of its shape have."""
        if spec not in self._answers:
            made = torch.zeros(spec.shape, dtype=spec.dtype, device=self._device)
            if spec.dtype.is_floating_point:
                generator = torch.Generator(self._device).manual_seed(0)
                made.normal_(generator=generator)
            self._answers[spec] = made
        return self._answers[spec].clone()

    def status(self, rank: int) -> str:
        return "nobody"

    def give_up(self, reason: str) -> None: ...

    def given_up(self) -> str | None:
        return None
