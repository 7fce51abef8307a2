"""``Group``: what the collectives ask of ranks that work together; sums in rank order."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Group(Protocol):
    """Ranks that call the same collectives in the same order.

    Met by ``DistributedGroup`` (torch.distributed) and ``LocalGroup`` (threads of one process).
    Tensors given are contiguous and are not changed; those returned belong to the caller.

    rank: of the caller in the group, from 0.
    size: number of ranks.
    """

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of tensors of one shape."""
        ...

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        """The largest over ranks, element by element, of tensors of one shape; not of booleans."""
        ...

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensor of every rank; all have one shape."""
        ...

    def reduce_scatter(self, parts: Sequence[Tensor]) -> Tensor:
        """The sum over ranks of their ``parts[rank]``; all parts have one shape."""
        ...

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        """What every rank has for this one: their ``parts[rank]``, of ``shapes``."""
        ...


def sum_in_order(tensors: Sequence[Tensor]) -> Tensor:
    """The sum from first to last, in at least float32, in the dtype of the first.

    One order whatever the transport, so that the same addends give the same bits.
    """
    dtype = tensors[0].dtype
    wide = torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype
    total = tensors[0].to(wide, copy=True)
    for tensor in tensors[1:]:
        total += tensor
    return total.to(dtype)
