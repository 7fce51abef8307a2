"""Where the engine waits for its ranks, and how long it lets them keep it waiting."""

import os
import socket
import struct

from blocks._checks import check

MAX_PATH_BYTES = 107
"""Of a Unix socket; the system has room for no more."""


def listen(folder: str, host: str | None) -> tuple[socket.socket, str]:
    """A Unix socket in ``folder``; for ranks on other machines, a port of ``host``."""
    if host is None:
        address = f"{folder}/engine"
        sock = unix_socket(address)
    else:
        sock = socket.create_server((host, 0))
        address = f"{host}:{sock.getsockname()[1]}"
    sock.listen(64)
    sock.settimeout(0.2)
    return sock, address


def unix_socket(path: str) -> socket.socket:
    """A Unix socket that is bound to a path in a temporary folder.

    Raises:
        ValueError: a path that is too long for one.
    """
    size, hint = len(os.fsencode(path)), "set TMPDIR to a folder with a shorter path"
    check(size <= MAX_PATH_BYTES, "socket", f"a path of at most {MAX_PATH_BYTES} bytes", path, hint)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(path)
    return sock


def limit_waits(sock: socket.socket, seconds: float) -> None:
    """A peer that stops reading, or in the middle of a frame, must not stop the engine."""
    sock.setblocking(True)
    whole, rest = divmod(seconds, 1)
    time = struct.pack("ll", int(whole), int(rest * 1e6))
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, time)
