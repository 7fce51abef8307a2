"""``Line``: a group's connection to the front door, with threads that read and write it."""

import collections
import contextlib
import logging
import socket
import threading
from collections.abc import Callable

import msgspec

from recipes.place.group import proof
from recipes.place.group.frames import Frames, GarbledFrame, frame
from recipes.place.group.messages import Beat, Order, Report, read_order, report_frames
from recipes.place.group.spec import GroupSpec
from recipes.place.group.state import GroupState

log = logging.getLogger("recipes.place")
READ_BYTES = 1 << 16


class Line:
    """Calls the front door, proves to know the key and has it proved.

    A thread hands on what is ordered, and None once no more will come. What is told is sent at once
    as far as the connection takes it; another thread sends the rest, so that who tells something
    never waits, and a heartbeat whenever nothing was told for a while: in the middle of a long step
    too.

    Args:
        take: is given every order, and None at the end. beat: how the group is.

    Raises:
        OSError: nobody listens there.
        NotProven: whoever listens does not know the key.
    """

    def __init__(
        self,
        spec: GroupSpec,
        take: Callable[[Order | None], object],
        beat: Callable[[], GroupState],
    ) -> None:
        self._spec, self._take, self._beat = spec, take, beat
        self._frames = Frames(proof.MAX_PROOF_BYTES)
        self._socket = _connect(spec.address)
        self._change = threading.Condition()  # guards what follows
        self._rest: collections.deque[bytes] = collections.deque()
        self._busy = False  # the writing thread is at the rest
        self._told = self._closing = False
        try:
            early = self._prove()
        except BaseException:
            self._socket.close()
            raise
        self._reading = threading.Thread(
            target=self._read, args=(early,), name="orders", daemon=True
        )
        self._writing = threading.Thread(target=self._write, name="reports", daemon=True)

    def start(self) -> None:
        self._reading.start()
        self._writing.start()

    def tell(self, report: Report) -> None:
        for data in report_frames(report):
            with self._change:
                self._told = True
                if not self._rest and not self._busy:
                    data = data[self._send_some(data) :]
                if data:
                    self._rest.append(data)
                    self._change.notify()

    def close(self, patience_s: float = 2.0) -> None:
        """Send what is still to be sent, and hang up."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._writing.join(patience_s)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send_some(self, data: bytes) -> int:
        """Send what the connection takes just now; how much that was."""
        try:
            return self._socket.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:  # it is gone, as the reading thread sees too
            return len(data)

    def _prove(self) -> list[bytes]:
        """The handshake; returns frames that came behind it."""
        key = bytes.fromhex(self._spec.key)
        self._socket.settimeout(proof.HANDSHAKE_S)
        found: list[bytes] = []
        question = self._receive(proof.Question, found)
        given = proof.answer(question, self._spec.group, key)
        self._socket.sendall(frame(msgspec.msgpack.encode(given)))
        proof.check_welcome(question, given, self._receive(proof.Welcome, found), key)
        self._socket.settimeout(None)
        self._frames.max_bytes = Frames().max_bytes
        return found

    def _receive(self, kind: type, found: list[bytes]):
        while not found:
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise proof.NotProven("the front door, which hung up,")
            found += self._frames.feed(data)
        try:
            return msgspec.msgpack.decode(found.pop(0), type=kind)
        except msgspec.DecodeError as error:
            raise proof.NotProven(f"the front door, which says {error},") from None

    def _read(self, early: list[bytes]) -> None:
        try:
            for payload in early:
                self._take(read_order(payload))
            while data := self._socket.recv(READ_BYTES):
                for payload in self._frames.feed(data):
                    self._take(read_order(payload))
        except GarbledFrame as error:
            log.error("group %s: the front door's line is given up: %s", self._spec.group, error)
        except OSError:
            pass  # it is gone
        self._take(None)

    def _write(self) -> None:
        while True:
            with self._change:
                self._busy = False
                if not self._rest and not self._closing:
                    self._change.wait(self._spec.heartbeat_s / 2)
                silent = not self._told
                self._told = False
                data = self._rest.popleft() if self._rest else b""
                self._busy = bool(data)
                if self._closing and not data:
                    return
            if data:
                try:
                    self._socket.sendall(data)
                except OSError:
                    return
            elif silent:
                self.tell(Beat(self._beat()))


def _connect(address: str) -> socket.socket:
    if address.startswith("/"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(proof.HANDSHAKE_S)
        try:
            sock.connect(address)
        except BaseException:
            sock.close()
            raise
        return sock
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host.strip("[]"), int(port)), proof.HANDSHAKE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return sock
