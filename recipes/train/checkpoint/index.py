"""The index of a checkpoint: every tensor's dtype and shape, and which file holds which piece.

``torch.distributed.checkpoint`` keeps the same knowledge in a pickle; here it is JSON, turned into
its ``Metadata`` for planning.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from recipes.model.tensor_file import DTYPES, NAMES

INDEX = "tensors.json"


class Piece(NamedTuple):
    """A box of a tensor: where it begins in every dimension, its shape, and the file it is in."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: str


class StoredTensor(NamedTuple):
    """A tensor of a checkpoint and the pieces that cover it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


Index = Mapping[str, StoredTensor]


def key_in_file(name: str, offsets: tuple[int, ...], shape: tuple[int, ...], whole: Any) -> str:
    """Name of a piece inside its file: the tensor's own where it is the whole tensor."""
    if tuple(shape) == tuple(whole):
        return name
    return f"{name}@{','.join(str(offset) for offset in offsets)}"


def make_index(metadata: Metadata, files: Mapping[MetadataIndex, str]) -> dict[str, StoredTensor]:
    """The index of a planned save.

    Args:
        files: name of the file that holds each piece.
    """
    index = {}
    for name, stored in sorted(metadata.state_dict_metadata.items()):
        assert isinstance(stored, TensorStorageMetadata), name
        pieces = tuple(
            Piece(tuple(c.offsets), tuple(c.sizes), files[MetadataIndex(name, c.offsets)])
            for c in stored.chunks
        )
        index[name] = StoredTensor(stored.properties.dtype, tuple(stored.size), pieces)
    return index


def make_metadata(index: Index) -> Metadata:
    """What the planner of a load asks for."""
    return Metadata(
        {
            name: TensorStorageMetadata(
                TensorProperties(dtype=tensor.dtype),
                torch.Size(tensor.shape),
                [
                    ChunkStorageMetadata(torch.Size(p.offsets), torch.Size(p.shape))
                    for p in tensor.pieces
                ],
            )
            for name, tensor in index.items()
        }
    )


def encode_index(index: Index) -> bytes:
    content = {
        name: {
            "dtype": NAMES[tensor.dtype],
            "shape": tensor.shape,
            "pieces": [piece._asdict() for piece in tensor.pieces],
        }
        for name, tensor in index.items()
    }
    return json.dumps(content, indent=0).encode()


def decode_index(data: bytes) -> dict[str, StoredTensor]:
    return {
        name: StoredTensor(
            DTYPES[raw["dtype"]],
            tuple(raw["shape"]),
            tuple(Piece(tuple(p["offsets"]), tuple(p["shape"]), p["file"]) for p in raw["pieces"]),
        )
        for name, raw in json.loads(data).items()
    }
