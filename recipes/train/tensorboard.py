"""The log as TensorBoard reads it, written without the tensorboard package.

An event file is a row of records; a record is a length, its checksum, a message and its checksum.
The messages are protocol buffers of a handful of fields, spelt out below. Only looking at the
curves needs TensorBoard (``pip install -e '.[tensorboard]'``, then ``tensorboard --logdir``).

Reference: tensorflow/core/util/event.proto and lib/io/record_writer (TFRecord, masked CRC-32C).
"""

import dataclasses
import os
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path

from recipes.train.log import LogEntry

_AXIS = ("step", "num_steps")


class TensorBoardLog:
    """Writes log entries as scalars, one event file per opening.

    Opening it after a step makes a reader drop what earlier files of the folder hold after that
    step, so a run that was killed and resumed draws one curve.

    Args:
        folder: for the event files of this run.
        after_step: steps done; what was written after them does not count.
        clock: seconds since 1970.
    """

    def __init__(
        self, folder: Path, *, after_step: int, clock: Callable[[], float] = time.time
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._clock = clock
        now = clock()
        name = f"events.out.tfevents.{int(now):010d}.{socket.gethostname()}.{os.getpid()}.0"
        number = sum(1 for _ in folder.glob("events.out.tfevents.*"))
        self.path = folder / f"{name}.{number}"
        _append(self.path, _event(now, 0, _text(3, "brain.Event:2")))
        if after_step:
            session_start = _number(1, 1)
            _append(self.path, _event(now, after_step + 1, _message(7, session_start)))

    def write(self, entry: LogEntry) -> None:
        """Every number of the entry as ``train/<its name>``; what was not looked at is left out."""
        values = {
            name: value
            for name, value in dataclasses.asdict(entry).items()
            if name not in _AXIS and isinstance(value, int | float)
        }
        scalars = (
            _message(1, _text(1, f"train/{name}") + _single(2, value))
            for name, value in values.items()
        )
        _append(self.path, _event(self._clock(), entry.step, _message(5, b"".join(scalars))))


def _append(path: Path, data: bytes) -> None:
    length = struct.pack("<Q", len(data))
    record = length + _masked_checksum(length) + data + _masked_checksum(data)
    with path.open("ab") as file:
        file.write(record)


def _event(wall_time: float, step: int, content: bytes) -> bytes:
    stamp = _key(1, 1) + struct.pack("<d", wall_time)
    return stamp + (_number(2, step) if step else b"") + content


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _number(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value)


def _single(field: int, value: float) -> bytes:
    return _key(field, 5) + struct.pack("<f", value)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Seven bits a byte, the low ones first; the top bit says that more follow."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _masked_checksum(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """CRC-32 with Castagnoli's polynomial.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _table() -> list[int]:
    rows = []
    for row in range(256):
        for _ in range(8):
            row = row >> 1 ^ (0x82F63B78 if row & 1 else 0)
        rows.append(row)
    return rows


_TABLE = _table()
