"""``Part``: what a rank holds of a tensor, in a form that checkpoints take beside ``DTensor``."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from blocks._checks import check, check_shape
from blocks.sharding import Cut


class Box(NamedTuple):
    """A box of the whole tensor: where it begins in every dim, and its values here."""

    offsets: tuple[int, ...]
    values: Tensor


class Part(torch.Tensor):
    """Some boxes of a tensor of a known shape; saved and read like a ``DTensor``, no more.

    Boxes of all ranks together must cover the tensor, and be equal or apart. One held by several
    ranks has the same values there and is written once; one held twice here is read twice.
    """

    boxes: tuple[Box, ...]

    @staticmethod
    def of(shape: Sequence[int], dtype: torch.dtype, boxes: Sequence[Box]) -> "Part":
        """
        Args:
            shape: of the whole.
            boxes: their values are not copied; reading into the part fills them.
        """
        part = torch.Tensor._make_wrapper_subclass(Part, tuple(shape), dtype=dtype)  # type: ignore[attr-defined]
        assert isinstance(part, Part)
        part.boxes = tuple(boxes)
        return part

    @staticmethod
    def of_cut(local: Tensor, cut: Cut, rank: int) -> "Part":
        """What a rank has of a tensor that is cut, such as a tensor-parallel parameter."""
        shape = (*local.shape[: cut.dim], cut.size, *local.shape[cut.dim + 1 :])
        check_shape(f"part of rank {rank}", local, cut.local_shape(shape, rank))
        runs = cut.runs[rank]
        ends = itertools.accumulate(run.size for run in runs)
        boxes = []
        for run, end in zip(runs, ends, strict=True):
            offsets = tuple(run.start if dim == cut.dim else 0 for dim in range(local.ndim))
            boxes.append(Box(offsets, local.narrow(cut.dim, end - run.size, run.size)))
        return Part.of(shape, local.dtype, boxes)

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(torch.Size(o), v.shape) for o, v in self.boxes]

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        properties = TensorProperties(dtype=self.dtype)
        items = {}
        for chunk in self.__create_chunk_list__():
            index = MetadataIndex(name, chunk.offsets)
            data = TensorWriteData(chunk, properties, self.shape)
            items[index] = WriteItem(index, WriteItemType.SHARD, None, data)
        return list(items.values())

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        """The values of a box; the hint tells equal ones apart when they are read into."""
        at = [i for i, box in enumerate(self.boxes) if box.offsets == tuple(index.offset or ())]
        check(bool(at), "part", f"a box at {index.offset}", [box.offsets for box in self.boxes])
        return self.boxes[index.index if index.index in at else at[0]].values

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise NotImplementedError(f"{function} on a Part, which is only saved and read into")
