"""Sums over lanes: always the same balanced tree, whichever processes hold the lanes.

Lane 0 is added to lane 1, lane 2 to lane 3, then the first pair to the second, and so on. A
process that holds several lanes adds up its part of the tree; processes add up the rest.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class LaneSums:
    """The sum of lanes that come one after another, in memory for log2 of their number.

    >>> sums = LaneSums()
    >>> for lane in range(4):
    ...     sums.add([torch.tensor(float(lane))])
    >>> sums.total()
    [tensor(6.)]
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, list[Tensor]]] = []  # (lanes in it, sums), ever smaller

    def add(self, lane: Sequence[Tensor]) -> None:
        """Take over the next lane's tensors; they are written to."""
        size, sums = 1, list(lane)
        while self._parts and self._parts[-1][0] == size:
            before = self._parts.pop()[1]
            for left, right in zip(before, sums, strict=True):
                left.add_(right)
            size, sums = 2 * size, before
        self._parts.append((size, sums))

    def total(self) -> list[Tensor]:
        """The sum, once a power of two of lanes has come."""
        (entry,) = self._parts
        return entry[1]


def tree_sum_across(tensors: Sequence[Tensor], group: Any) -> None:
    """Add tensors up over the processes of a group, in place, as the top of the tree of lanes.

    In round r, processes whose numbers differ in bit r exchange halves of what they hold and add
    them; then the halves go back the same way. Each element's additions are those of the tree, and
    each process sends twice the tensors' size at most. The number of processes is a power of two.

    Reference: Rabenseifner 2004, Optimization of collective reduction operations (the exchange).
    """
    size, mine = dist.get_world_size(group), dist.get_rank(group)
    if size == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    first, stop, given = 0, len(flat), []
    distance = 1
    while distance < size:
        middle, partner = (first + stop) // 2, mine ^ distance
        keep, give = (first, middle), (middle, stop)
        if mine & distance:
            keep, give = give, keep
        got = torch.empty_like(flat[slice(*keep)])
        _exchange(flat[slice(*give)], got, partner, group)
        flat[slice(*keep)] += got
        given.append((partner, give, keep))
        (first, stop), distance = keep, 2 * distance
    for partner, give, keep in reversed(given):
        got = torch.empty_like(flat[slice(*give)])
        _exchange(flat[slice(*keep)], got, partner, group)
        flat[slice(*give)] = got
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, flat.split(sizes), strict=True):
        tensor.copy_(part.view_as(tensor))


def sum_across(tensors: Sequence[Tensor], group: Any) -> None:
    """Add tensors up over the processes of a group, in place, in whatever order is fastest."""
    if dist.get_world_size(group) == 1 or not tensors:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    dist.all_reduce(flat, group=group)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, flat.split(sizes), strict=True):
        tensor.copy_(part.view_as(tensor))


def _exchange(sent: Tensor, got: Tensor, partner: int, group: Any) -> None:
    peer = dist.get_global_rank(group, partner)
    both = []
    if sent.numel():
        both.append(dist.P2POp(dist.isend, sent.contiguous(), peer, group))
    if got.numel():
        both.append(dist.P2POp(dist.irecv, got, peer, group))
    for work in dist.batch_isend_irecv(both) if both else ():  # NCCL does one after the other
        work.wait()
