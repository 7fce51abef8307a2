"""``Wire``: what carries the messages of a cross-mesh plan."""

import collections
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor

from blocks._checks import fail


@runtime_checkable
class Message(Protocol):
    """A message under way."""

    def wait(self) -> Tensor:
        """The tensor, once it has arrived; of a send, once it may be reused."""
        ...


@runtime_checkable
class Wire(Protocol):
    """Ordered channels between every two ranks, one each way; neither call blocks.

    The k-th tensor sent from rank a to rank b is what the k-th receive of b from a gets.
    """

    def send(self, tensor: Tensor, target_rank: int) -> Message:
        """Begin to send a contiguous tensor, which must not change before ``wait`` is over."""
        ...

    def receive(self, shape: Sequence[int], dtype: torch.dtype, source_rank: int) -> Message:
        """Begin to receive into a new tensor."""
        ...


class _Posted:
    """A message of torch.distributed."""

    def __init__(self, tensor: Tensor, work: Any) -> None:
        self._tensor, self._work = tensor, work

    def wait(self) -> Tensor:
        self._work.wait()
        return self._tensor


class DistributedWire:
    """A ``Wire`` over torch.distributed; ranks are those of the whole job.

    Args:
        process_group: that both ranks of every message are in; None takes all ranks.
        downward: carries the messages to lower ranks; default the same group. NCCL runs what two
            ranks exchange in one group in order, so there two ranks that send to one another at a
            time need two.
        device: that tensors are received on.

    Raises:
        ValueError: NCCL without ``downward``.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        *,
        downward: dist.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        if downward is None and "nccl" in dist.get_backend(process_group):
            raise fail("downward", "a second group, as NCCL needs", None, "dist.new_group()")
        self._upward, self._device = process_group, device
        self._downward = process_group if downward is None else downward
        self._rank = dist.get_rank()

    def send(self, tensor: Tensor, target_rank: int) -> Message:
        group = self._upward if target_rank > self._rank else self._downward
        return _Posted(tensor, dist.isend(tensor, target_rank, group=group))

    def receive(self, shape: Sequence[int], dtype: torch.dtype, source_rank: int) -> Message:
        tensor = torch.empty(tuple(shape), dtype=dtype, device=self._device)
        group = self._upward if source_rank < self._rank else self._downward
        return _Posted(tensor, dist.irecv(tensor, source_rank, group=group))


class _Awaited:
    """A message between threads."""

    def __init__(self, future: "Future[Tensor]") -> None:
        self._future = future

    def wait(self) -> Tensor:
        return self._future.result(timeout=60.0)


class LocalWires:
    """Wires between threads of one process; ``wires.of(rank)`` is that of one rank.

    ``num_bytes_sent`` counts what every rank sent.
    """

    def __init__(self) -> None:
        self.num_bytes_sent: collections.Counter[int] = collections.Counter()
        self._numbers: collections.Counter[tuple[str, int, int]] = collections.Counter()
        self._messages: dict[tuple[int, int, int], Future[Tensor]] = {}
        self._lock = threading.Lock()

    def of(self, rank: int) -> Wire:
        """The wire that a rank sends and receives with."""
        return _LocalWire(self, rank)

    def message(self, end: str, source: int, target: int) -> "Future[Tensor]":
        """The next message from one rank to another, as one of its ends (send, receive) sees it."""
        with self._lock:
            number = self._numbers[end, source, target]
            self._numbers[end, source, target] += 1
            key = (source, target, number)
            if key in self._messages:  # the other end was here
                return self._messages.pop(key)
            return self._messages.setdefault(key, Future())


class _LocalWire:
    def __init__(self, wires: LocalWires, rank: int) -> None:
        self._wires, self._rank = wires, rank

    def send(self, tensor: Tensor, target_rank: int) -> Message:
        self._wires.num_bytes_sent[self._rank] += tensor.nbytes
        message = self._wires.message("send", self._rank, target_rank)
        message.set_result(tensor.clone())
        return _Awaited(message)

    def receive(self, shape: Sequence[int], dtype: torch.dtype, source_rank: int) -> Message:
        return _Awaited(self._wires.message("receive", source_rank, self._rank))
