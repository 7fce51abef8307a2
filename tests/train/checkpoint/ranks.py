"""Ranks as threads of one process, and tensors that lie in pieces on them."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from recipes.train.checkpoint import Ranks

T = TypeVar("T")


class ThreadRanks:
    """One rank of several that meet at a barrier."""

    def __init__(self, rank: int, meeting: threading.Barrier, table: list[Any]) -> None:
        self.rank, self.num_ranks = rank, meeting.parties
        self._meeting, self._table = meeting, table

    def leave(self) -> None:
        """Fail everyone who waits for this rank, now or later."""
        self._meeting.abort()

    def gather(self, value: T) -> list[T] | None:
        self._table[self.rank] = value
        self._meeting.wait(20)
        found = list(self._table)
        self._meeting.wait(20)
        return found if self.rank == 0 else None

    def broadcast(self, value: T) -> T:
        if self.rank == 0:
            self._table[0] = value
        self._meeting.wait(20)
        found = self._table[0]
        self._meeting.wait(20)
        return found


def on_ranks(num_ranks: int, work: Callable[[Ranks], T]) -> list[T | Exception]:
    """Run ``work`` on every rank; what each returned or raised."""
    meeting, table = threading.Barrier(num_ranks), [None] * num_ranks
    results: list[Any] = [None] * num_ranks

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, meeting, table))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Box(torch.Tensor):
    """A tensor of which only a box is here: what a ``DTensor`` shows to the planner."""

    part: torch.Tensor
    offsets: tuple[int, ...]

    @staticmethod
    def of(whole: torch.Tensor, offsets: tuple[int, ...], shape: tuple[int, ...]) -> "Box":
        box = torch.Tensor._make_wrapper_subclass(Box, whole.shape, dtype=whole.dtype)
        assert isinstance(box, Box)
        place = tuple(slice(o, o + n) for o, n in zip(offsets, shape, strict=True))
        box.part, box.offsets = whole[place], offsets
        return box

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        chunk = self.__create_chunk_list__()[0]
        properties = TensorProperties.create_from_tensor(self.part)
        data = TensorWriteData(chunk, properties, self.shape)
        return [WriteItem(MetadataIndex(name, chunk.offsets), WriteItemType.SHARD, None, data)]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(self.offsets), self.part.shape)]

    def __get_tensor_shard__(self, _: MetadataIndex) -> torch.Tensor:
        return self.part

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(f"{function} on a box")
