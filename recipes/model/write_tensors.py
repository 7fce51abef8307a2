"""``write_tensors``: a safetensors file from tensors that may be views and may need converting."""

import ctypes
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recipes.model.tensor_file import NAMES, bytes_of


class Named(NamedTuple):
    """What to write under a name; the tensor may be a view and may need converting."""

    name: str
    tensor: Tensor
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes it takes in the file."""
        return self.tensor.numel() * self.dtype.itemsize


def write_tensors(path: Path, tensors: Sequence[Named]) -> None:
    """Write a safetensors file: complete under its name, or not there at all.

    Tensors that are not contiguous, of another dtype or on a device are copied one at a time.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with scratch.open("wb") as file:
            for part in file_parts(tensors):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def file_parts(tensors: Sequence[Named]) -> Iterator[bytes | ctypes.Array]:
    """The bytes of a safetensors file, piece by piece; each is valid until the next is asked for.

    Tensors that are not contiguous, of another dtype or on a device are copied one at a time.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for item in tensors:
        start, end = end, end + item.num_bytes
        header[item.name] = {
            "dtype": NAMES[item.dtype],
            "shape": list(item.tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for item in tensors:
        whole = item.tensor.detach().to("cpu", item.dtype).contiguous()
        yield bytes_of(whole)
