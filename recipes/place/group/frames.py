"""Frames: runs of bytes behind their length, cut out of a stream that arrives in any pieces."""

import struct

from blocks._checks import check

MAX_FRAME_BYTES = 1 << 28
_LENGTH = struct.Struct("!I")


class GarbledFrame(ValueError):
    """What came cannot be read; nothing behind it can be either."""


def frame(payload: bytes, max_bytes: int = MAX_FRAME_BYTES) -> bytes:
    """A payload behind its length.

    >>> frame(b"ab")
    b'\\x00\\x00\\x00\\x02ab'

    Raises:
        ValueError: more than ``max_bytes``.
    """
    check(len(payload) <= max_bytes, "frame", f"at most {max_bytes} bytes", len(payload))
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """The frames of a stream, whole ones as they become whole.

    Args:
        max_bytes: longest payload taken; set anew at any time.

    >>> frames = Frames()
    >>> frames.feed(b"\\x00\\x00\\x00\\x02a"), frames.feed(b"b\\x00")
    ([], [b'ab'])
    """

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self.max_bytes = max_bytes
        self._bytes = bytearray()
        self._wanted: int | None = None  # length of the frame whose head was read

    def feed(self, data: bytes) -> list[bytes]:
        """Take what has arrived.

        Raises:
            GarbledFrame: a frame longer than the limit is announced.
        """
        self._bytes += data
        found, at = [], 0
        while True:
            if self._wanted is None:
                if len(self._bytes) - at < _LENGTH.size:
                    break
                (length,) = _LENGTH.unpack_from(self._bytes, at)
                at += _LENGTH.size
                if length > self.max_bytes:
                    expected = f"at most {self.max_bytes} bytes"
                    raise GarbledFrame(f"frame: expected {expected}, got {length}")
                self._wanted = length
            stop = at + (self._wanted or 0)
            if len(self._bytes) < stop:
                break
            found.append(bytes(self._bytes[at:stop]))
            at, self._wanted = stop, None
        del self._bytes[:at]
        return found

    @property
    def is_empty(self) -> bool:
        """Whether nothing of a frame is held."""
        return not self._bytes and self._wanted is None
