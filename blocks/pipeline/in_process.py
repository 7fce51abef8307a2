"""``InProcessTransport``: the ranks of a pipeline as threads of one process."""

import collections
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import Tensor

from blocks._checks import check, check_count
from blocks.pipeline.action import Action
from blocks.pipeline.transport import Handle, PipelineStuck, TensorSpec

T = TypeVar("T")


class _Message:
    """A tensor on its way, sent or asked for or both."""

    def __init__(self) -> None:
        self.tensor: Tensor | None = None
        self.action: Action | None = None
        self.ready_at = 0.0
        self.asked = False


class _World:
    """What the ranks share: a queue of messages for every ordered pair of ranks."""

    def __init__(self, num_ranks: int) -> None:
        self.changed = threading.Condition()
        self.statuses = [("start", time.monotonic())] * num_ranks
        self.gave_up: str | None = None
        self.sent: dict[tuple[int, int], collections.deque[_Message]] = {}
        self.asked: dict[tuple[int, int], collections.deque[_Message]] = {}
        self.last_ready: dict[tuple[int, int], float] = collections.defaultdict(float)

    def match(self, mine: Any, other: Any, channel: tuple[int, int]) -> _Message:
        """The message the next call on one end of a channel is about."""
        waiting = other.setdefault(channel, collections.deque())
        if waiting:
            return waiting.popleft()
        message = _Message()
        mine.setdefault(channel, collections.deque()).append(message)
        return message


class InProcessTransport:
    """One rank's end of channels made of queues; tensors are handed over, not copied.

    Made by ``in_process_transports``.
    """

    def __init__(
        self, world: _World, rank: int, num_ranks: int, delay_s: Callable[[], float] | None
    ) -> None:
        self._world, self._rank, self._num_ranks = world, rank, num_ranks
        self._delay_s = delay_s

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def num_ranks(self) -> int:
        return self._num_ranks

    def send(self, tensor: Tensor, target_rank: int, action: Action) -> Handle:
        world, channel = self._world, (self._rank, target_rank)
        delay = self._delay_s() if self._delay_s else 0.0
        with world.changed:
            message = world.match(world.sent, world.asked, channel)
            if delay:
                ready_at = max(time.monotonic() + delay, world.last_ready[channel])
                message.ready_at = world.last_ready[channel] = ready_at
            message.action, message.tensor = action, tensor
            world.changed.notify_all()
        return _Handle(world, message, tensor, None)

    def receive(self, spec: TensorSpec, source_rank: int, action: Action) -> Handle:
        world = self._world
        with world.changed:
            message = world.match(world.asked, world.sent, (source_rank, self._rank))
            message.asked = True
            world.changed.notify_all()
        return _Handle(world, message, None, (spec, action))

    def post_status(self, text: str) -> None:
        self._world.statuses[self._rank] = (text, time.monotonic())

    def status(self, rank: int) -> str:
        text, since = self._world.statuses[rank]
        return f"{text} since {time.monotonic() - since:.1f} s"

    def give_up(self, reason: str) -> None:
        with self._world.changed:
            self._world.gave_up = self._world.gave_up or reason
            self._world.changed.notify_all()

    def given_up(self) -> str | None:
        return self._world.gave_up


class _Handle:
    """A message seen from one end; a send is done when it has been asked for."""

    def __init__(
        self,
        world: _World,
        message: _Message,
        sent: Tensor | None,
        expected: tuple[TensorSpec, Action] | None,
    ) -> None:
        self._world, self._message = world, message
        self._sent, self._expected = sent, expected

    def done(self) -> bool:
        message = self._message
        if self._expected is None:
            return message.asked
        return message.tensor is not None and time.monotonic() >= message.ready_at

    def wait(self, timeout_s: float) -> Tensor:
        world, message = self._world, self._message
        until = time.monotonic() + timeout_s
        with world.changed:
            while not self.done():
                now = time.monotonic()
                if now >= until or world.gave_up is not None:
                    raise TimeoutError
                pause = until - now
                if message.tensor is not None and self._expected is not None:
                    pause = min(pause, message.ready_at - now)
                world.changed.wait(max(0.0, pause))
        if self._expected is None:
            assert self._sent is not None
            return self._sent
        (spec, action), tensor = self._expected, message.tensor
        assert tensor is not None
        in_order = message.action == action
        check(in_order, "what arrived", action, message.action, "sends are out of order")
        check(TensorSpec.of(tensor) == spec, f"tensor of {action}", spec, TensorSpec.of(tensor))
        return tensor


def in_process_transports(
    num_ranks: int, *, max_delay_s: float = 0.0, seed: int = 0
) -> list[InProcessTransport]:
    """Transports of all ranks, to be used by one thread each.

    Args:
        max_delay_s: tensors arrive up to so much later, drawn anew for each; for tests.
        seed: of the delays.

    >>> import torch
    >>> a, b = in_process_transports(2)
    >>> action = Action.parse("SF0>1(0,0)", 0)
    >>> handle = b.receive(TensorSpec((2,), torch.float32), 0, action)
    >>> _ = a.send(torch.ones(2), 1, action)
    >>> handle.wait(timeout_s=1.0)
    tensor([1., 1.])
    """
    check_count("num_ranks", num_ranks)
    check(max_delay_s >= 0, "max_delay_s", "at least 0", max_delay_s)
    world = _World(num_ranks)
    found = []
    for rank in range(num_ranks):
        draw = random.Random(f"{seed}/{rank}")
        delay = (lambda draw=draw: draw.random() * max_delay_s) if max_delay_s else None
        found.append(InProcessTransport(world, rank, num_ranks, delay))
    return found


def run_ranks(work: Callable[[InProcessTransport], T], transports: Sequence[Any]) -> list[T]:
    """Call ``work`` with every transport in a thread of its own; returns what the calls return.

    Raises:
        Exception: what a rank raised; the first that is no mere echo of another's.
    """
    results: list[Any] = [None] * len(transports)
    errors: list[BaseException] = []

    def run(transport: InProcessTransport) -> None:
        try:
            results[transport.rank] = work(transport)
        except BaseException as error:
            errors.append(error)
            transport.give_up(f"rank {transport.rank} failed: {error!r}")

    threads = [threading.Thread(target=run, args=(t,), daemon=True) for t in transports]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        transports[0].give_up("interrupted")
        raise
    if errors:
        raise next((e for e in errors if not isinstance(e, PipelineStuck)), errors[0])
    return results
