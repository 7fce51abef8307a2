"""What workers say to the process that started them; no lock is shared, so any may be killed."""

import dataclasses
import os
import pickle
import socket
import threading
from collections.abc import Callable
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

from recipes.train.elastic import restart_count

Say = Callable[[str, Any], None]
"""Takes "log", "note" or "error" and what it is."""


@dataclasses.dataclass(frozen=True)
class Mouth:
    """Where the one who listens is found; sent to the workers."""

    address: str
    key: bytes

    def open(self) -> Say:
        """Called in a worker: how it speaks from then on."""
        connection, attempt = Client(self.address, authkey=self.key), restart_count()

        def say(kind: str, value: Any) -> None:
            try:
                message = pickle.dumps((kind, attempt, value))
                pickle.loads(message)
            except Exception:
                message = pickle.dumps((kind, attempt, RuntimeError(repr(value))))
            connection.send_bytes(message)

        return say


class Ear:
    """Hands on what workers say, from threads of its own.

    error: the first one told of in the last attempt that told of any.
    """

    def __init__(
        self, on_log: Callable[[Any], None] | None, on_note: Callable[[str], None] | None
    ) -> None:
        self._told = {"log": on_log, "note": on_note}
        self.error: Exception | None = None
        self._failed_attempt = -1
        key = os.urandom(16)
        self._listener = Listener(family="AF_UNIX", authkey=key)
        self.mouth = Mouth(str(self._listener.address), key)
        self._closing = False
        self._one_at_a_time = threading.Lock()
        self._readers: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Return when all that was said is handed on; the workers have ended."""
        if self._closing:
            return
        self._closing = True
        with socket.socket(socket.AF_UNIX) as knock:  # wakes the thread where it waits
            knock.connect(self.mouth.address)
        self._thread.join()
        self._listener.close()
        for reader in self._readers:
            reader.join(timeout=5)

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection = self._listener.accept()
            except (OSError, EOFError, AuthenticationError):  # gone before it said its name
                continue
            reader = threading.Thread(target=self._read, args=(connection,), daemon=True)
            self._readers.append(reader)
            reader.start()

    def _read(self, connection: Connection) -> None:
        with connection:
            while True:
                try:
                    kind, attempt, value = pickle.loads(connection.recv_bytes())
                except (OSError, EOFError):
                    return
                with self._one_at_a_time:
                    self._hear(kind, attempt, value)

    def _hear(self, kind: str, attempt: int, value: Any) -> None:
        if kind == "error":
            if attempt > self._failed_attempt:
                self.error, self._failed_attempt = value, attempt
            return
        told = self._told[kind]
        if told is not None:
            told(value)
