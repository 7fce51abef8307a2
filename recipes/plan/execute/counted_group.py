"""``CountedGroup``: a group that keeps count of what its rank sends."""

import collections
from collections.abc import Mapping, Sequence

from torch import Tensor

from blocks.sharding import Collective, Group, collective_bytes


class CountedGroup:
    """A ``Group`` that passes everything on to another one and counts.

    number: of collectives, by kind.
    bytes: sent, by kind, as ``collective_bytes`` counts: the least that will do, padding included.
    """

    def __init__(self, group: Group) -> None:
        self._group = group
        self.number: collections.Counter[Collective] = collections.Counter()
        self.bytes: collections.Counter[Collective] = collections.Counter()

    @property
    def rank(self) -> int:
        return self._group.rank

    @property
    def size(self) -> int:
        return self._group.size

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self._count_reduce(tensor)
        return self._group.all_reduce(tensor)

    def all_reduce_max(self, tensor: Tensor) -> Tensor:
        self._count_reduce(tensor)
        return self._group.all_reduce_max(tensor)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self._count("all_gather", (self.size - 1) * tensor.nbytes)
        return self._group.all_gather(tensor)

    def reduce_scatter(self, parts: Sequence[Tensor]) -> Tensor:
        self._count("reduce_scatter", self._to_others(parts))
        return self._group.reduce_scatter(parts)

    def all_to_all(self, parts: Sequence[Tensor], shapes: Sequence[Sequence[int]]) -> list[Tensor]:
        self._count("all_to_all", self._to_others(parts))
        return self._group.all_to_all(parts, shapes)

    def _count_reduce(self, tensor: Tensor) -> None:
        sent = collective_bytes("all_reduce", tensor.numel(), tensor.itemsize, self.size)
        self._count("all_reduce", sent)

    def _to_others(self, parts: Sequence[Tensor]) -> int:
        return sum(part.nbytes for at, part in enumerate(parts) if at != self.rank)

    def _count(self, collective: Collective, sent: int) -> None:
        self.number[collective] += 1
        self.bytes[collective] += sent


def counted(groups: Mapping[str, Group]) -> dict[str, CountedGroup]:
    """Groups of the axes of a mesh, each with its count."""
    return {axis: CountedGroup(group) for axis, group in groups.items()}
