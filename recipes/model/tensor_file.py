"""One safetensors file: header checked in full, tensors read straight into their final memory.

The safetensors package maps a file and hands out views of it. A decoder keeps its matrices fused,
so every tensor is copied once, and mapped pages would count beside the copies: twice the weights
at the peak. Plain reads into the parameters need no second copy, and a file cut while it is read
is an error here where a mapping ends the process.

Format: 8 bytes little-endian header length, a JSON header of name -> dtype, shape, data_offsets,
then the data without holes.
"""

import ctypes
import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blocks._checks import fail

MAX_HEADER_BYTES = 100 << 20
STAGING_BYTES = 16 << 20
PAGE_BYTES = 4096
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Entry(NamedTuple):
    """Where a tensor lies: dtype, shape, and the half-open byte range in the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


class TensorFile:
    """A safetensors file open for reading; a context manager.

    Raises:
        ValueError: a header that does not describe the file exactly, naming file and tensor.
    """

    def __init__(self, path: Path) -> None:
        self.name = path.name
        self._file = path.open("rb", buffering=0)
        try:
            self.entries = self._read_header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_into(self, name: str, out: Tensor) -> None:
        """Read one tensor into ``out``, converting dtype, layout and device where they differ.

        Needs at most 16 MiB (or one row) besides ``out``.
        """
        entry = self.entries[name]
        assert tuple(out.shape) == entry.shape, (name, out.shape, entry.shape)
        self._read(name, entry, out)

    def read_run_into(self, name: str, out: Tensor, dim: int, start: int) -> None:
        """Read what ``narrow(dim, start, out.shape[dim])`` of one tensor holds, and little else.

        Args:
            dim: 0, or 1 of a matrix. Short runs of columns are read with the rows around them.
        """
        entry = self.entries[name]
        row_bytes = (entry.stop - entry.start) // max(entry.shape[0], 1)
        if dim == 0:
            begin = entry.start + start * row_bytes
            part = Entry(entry.dtype, tuple(out.shape), begin, begin + len(out) * row_bytes)
            self._read(name, part, out)
            return
        itemsize, width = entry.dtype.itemsize, out.shape[1]
        if width * itemsize < PAGE_BYTES:
            step = max(1, STAGING_BYTES // max(row_bytes, 1))
            for row in range(0, len(out), step):
                part = out[row : row + step]
                staged = torch.empty((len(part), entry.shape[1]), dtype=entry.dtype)
                self._fill(name, staged, entry.start + row * row_bytes)
                part.copy_(staged.narrow(1, start, width))
            return
        staged = torch.empty(width, dtype=entry.dtype)
        for row in range(len(out)):
            self._fill(name, staged, entry.start + row * row_bytes + start * itemsize)
            out[row].copy_(staged)

    def _read(self, name: str, entry: Entry, out: Tensor) -> None:
        if out.dtype == entry.dtype and out.is_contiguous() and out.device.type == "cpu":
            self._fill(name, out, entry.start)
            return
        if out.ndim == 0:
            out, entry = out[None], entry._replace(shape=(1,))
        row_bytes = (entry.stop - entry.start) // max(entry.shape[0], 1)
        step = max(1, STAGING_BYTES // max(row_bytes, 1))
        for row in range(0, entry.shape[0], step):
            part = out[row : row + step]
            staged = torch.empty(part.shape, dtype=entry.dtype)
            self._fill(name, staged, entry.start + row * row_bytes)
            part.copy_(staged)

    def _fill(self, name: str, out: Tensor, start: int) -> None:
        wanted = out.numel() * out.element_size()
        view = memoryview(bytes_of(out)).cast("B")
        self._file.seek(start)
        done = 0
        while done < wanted:
            got = self._file.readinto(view[done:])
            if not got:
                raise fail(
                    f"{self.name} tensor {name}", f"{wanted} bytes", done, "the file was cut"
                )
            done += got

    def _read_header(self) -> dict[str, Entry]:
        size = os.fstat(self._file.fileno()).st_size
        length = int.from_bytes(self._file.read(8), "little")
        room = size - 8
        hint = "the file is cut or is not safetensors"
        if room <= 0:
            raise fail(self.name, "a safetensors file of more than 8 bytes", size, hint)
        if not 0 < length <= min(room, MAX_HEADER_BYTES):
            raise fail(
                self.name,
                f"a header of 1 to {min(room, MAX_HEADER_BYTES)} bytes",
                f"{length} (file of {size} bytes)",
                hint,
            )
        text = self._file.read(length)
        try:
            header = json.loads(text.decode(), object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            got = f"text that is not ({str(error)[:80]})"
            raise fail(f"{self.name} header", "JSON", got) from None
        if not isinstance(header, dict):
            raise fail(f"{self.name} header", "a JSON object", type(header).__name__)
        header.pop("__metadata__", None)
        base = 8 + length
        entries = {name: self._entry(name, raw, base) for name, raw in header.items()}
        self._check_cover(entries, base, size)
        return entries

    def _entry(self, name: str, raw: Any, base: int) -> Entry:
        where = f"{self.name} tensor {name[:200]}"
        if not isinstance(raw, dict) or set(raw) != {"dtype", "shape", "data_offsets"}:
            raise fail(where, "dtype, shape and data_offsets", repr(raw)[:80])
        dtype = DTYPES.get(raw["dtype"]) if isinstance(raw["dtype"], str) else None
        if dtype is None:
            raise fail(f"{where} dtype", f"one of {list(DTYPES)}", repr(raw["dtype"])[:80])
        shape, offsets = raw["shape"], raw["data_offsets"]
        if not _counts(shape):
            raise fail(f"{where} shape", "a list of sizes", repr(shape)[:80])
        if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise fail(f"{where} data_offsets", "a start and an end after it", repr(offsets)[:80])
        wanted = math.prod(shape) * dtype.itemsize
        if wanted != offsets[1] - offsets[0]:
            got = f"{offsets[1] - offsets[0]}"
            raise fail(where, f"{wanted} bytes for {shape} of {raw['dtype']}", got)
        return Entry(dtype, tuple(shape), base + offsets[0], base + offsets[1])

    def _check_cover(self, entries: dict[str, Entry], base: int, size: int) -> None:
        end = base
        for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
            if entry.start != end:
                raise fail(
                    f"{self.name} tensor {name[:200]}",
                    f"data from byte {end - base}",
                    entry.start - base,
                    "tensors overlap or leave a hole",
                )
            end = entry.stop
        if end != size:
            raise fail(
                self.name, f"a file of {end} bytes", size, "the file is cut or has something added"
            )


def bytes_of(tensor: Tensor) -> ctypes.Array:
    """The memory of a contiguous CPU tensor; valid while the tensor lives."""
    return (ctypes.c_char * (tensor.numel() * tensor.element_size())).from_address(
        tensor.data_ptr()
    )


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(i) is int and i >= 0 for i in value)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen = dict(pairs)
    if len(seen) != len(pairs):
        raise ValueError("the same key twice")
    return seen
