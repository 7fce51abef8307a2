"""Where the engine waits for its ranks, and how long it lets them keep it waiting."""

import socket
import struct


def listen(folder: str, host: str | None) -> tuple[socket.socket, str]:
    """A Unix socket in ``folder``; for ranks on other machines, a port of ``host``."""
    if host is None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        address = f"{folder}/engine"
        sock.bind(address)
    else:
        sock = socket.create_server((host, 0))
        address = f"{host}:{sock.getsockname()[1]}"
    sock.listen(64)
    sock.settimeout(0.2)
    return sock, address


def limit_waits(sock: socket.socket, seconds: float) -> None:
    """A peer that stops reading, or in the middle of a frame, must not stop the engine."""
    sock.setblocking(True)
    whole, rest = divmod(seconds, 1)
    time = struct.pack("ll", int(whole), int(rest * 1e6))
    for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, time)
