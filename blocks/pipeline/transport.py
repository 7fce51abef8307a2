"""``Transport``: what moves tensors between the ranks of a pipeline."""

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from blocks.pipeline.action import Action


class PipelineStuck(RuntimeError):
    """A rank waited longer than allowed, or another rank gave up; the message names actions."""


class TensorSpec(NamedTuple):
    """Shape and dtype of a tensor that is still to arrive."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorSpec":
        """
        >>> TensorSpec.of(torch.zeros(2, 3)).shape
        (2, 3)
        """
        return cls(tuple(tensor.shape), tensor.dtype)


@runtime_checkable
class Handle(Protocol):
    """A send or receive under way."""

    def wait(self, timeout_s: float) -> Tensor:
        """The tensor, once it has arrived (of a send: once it may be reused).

        Raises:
            TimeoutError: not within ``timeout_s`` seconds; waiting may go on with another call.
            ConnectionError: it will never come.
        """
        ...

    def done(self) -> bool:
        """Whether ``wait`` would return at once."""
        ...


@runtime_checkable
class Transport(Protocol):
    """Ordered channels between every two ranks, one each way.

    The k-th tensor sent from rank a to rank b is what the k-th receive of b from a gets. Neither
    call blocks.
    """

    @property
    def rank(self) -> int: ...

    @property
    def num_ranks(self) -> int: ...

    def send(self, tensor: Tensor, target_rank: int, action: Action) -> Handle:
        """Begin to send; the tensor must not change before the handle is done.

        Args:
            action: the send it belongs to, for reports.
        """
        ...

    def receive(self, spec: TensorSpec, source_rank: int, action: Action) -> Handle:
        """Begin to receive into a new tensor.

        Args:
            action: the send it comes from, as the sender names it, for checks and reports.
        """
        ...

    def post_status(self, text: str) -> None:
        """Say what this rank does from now on; called before every action, so it must be cheap."""
        ...

    def status(self, rank: int) -> str:
        """What ``rank`` last said and since when, like ``BW1(2,0) since 7.2 s``."""
        ...

    def give_up(self, reason: str) -> None:
        """Tell all ranks that this one will not go on."""
        ...

    def given_up(self) -> str | None:
        """The reason of a rank that gave up, if any did."""
        ...
