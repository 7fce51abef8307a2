"""``Listener``: where groups call the front door, and prove that they are those it has started."""

import asyncio
import dataclasses
import ipaddress
import logging
import os
import socket

import msgspec

from recipes.place.group import proof
from recipes.place.group.frames import Frames, GarbledFrame, frame
from recipes.place.group.handle import GroupHandle
from recipes.place.group.local import StartGroup, exec_group
from recipes.place.group.spec import GroupSpec
from recipes.serve.own_folder import OwnFolder, sweep
from recipes.serve.parallel.listening import unix_socket

log = logging.getLogger("recipes.place")
MAX_UNPROVEN = 64
"""Connections that may be in the middle of their handshake."""


class Listener:
    """The front door's side of all groups. Make one with ``open``, on the running event loop.

    address: that groups are told: path of a Unix socket, or ``host:port``.
    """

    def __init__(self, sock: socket.socket, address: str, folder: OwnFolder | None) -> None:
        self.address = address
        self._socket, self._folder = sock, folder
        self._server: asyncio.Server | None = None
        self._handles: dict[str, GroupHandle] = {}
        self._num_unproven = 0

    @classmethod
    async def open(cls, host: str | None = None, port: int = 0) -> "Listener":
        """Listen on a Unix socket in a folder of this user alone. What front doors and groups have
        left that were killed is removed.

        Args:
            host: listen on a port of this address instead, for groups on other machines. Whoever
                calls must prove to know a group's key; what is then said is not encrypted.

        Raises:
            ValueError: temporary files go where no socket can be.
            OSError: the address cannot be had.
        """
        folder = None
        for left in sweep():
            log.info("removed %s, which a process that is gone has left", left)
        if host is None:
            folder = OwnFolder("place")
            address = f"{folder.path}/door"
            try:
                sock = unix_socket(address)
            except BaseException:
                folder.remove()
                raise
        else:
            family = socket.AF_INET6 if _is_six(host) else socket.AF_INET
            sock = socket.create_server((host, port), family=family)
            shown = f"[{host}]" if family == socket.AF_INET6 else host
            address = f"{shown}:{sock.getsockname()[1]}"
        self = cls(sock, address, folder)
        self._server = await asyncio.start_server(self._greet, sock=sock)
        return self

    def start(
        self,
        spec: GroupSpec,
        start: StartGroup = exec_group,
        *,
        silence_s: float | None = None,
        start_timeout_s: float = 120.0,
        max_sequences: int = 4096,
    ) -> GroupHandle:
        """Start a group; its address and key are filled in.

        Args:
            silence_s: of a group without a sign of life, after which it is lost; default ten
                heartbeats.
            start_timeout_s: longest it may take to call.
            max_sequences: most samples in flight on it, queues included.

        Raises:
            ValueError: a group of that name is there.
        """
        there = self._handles.get(spec.group)
        if there is not None and there.lost is None:
            raise ValueError(f"group: expected a name that is free, got {spec.group!r}")
        self._handles = {name: one for name, one in self._handles.items() if not one.is_over}
        spec = dataclasses.replace(spec, address=self.address, key=os.urandom(32).hex())
        handle = self._handles[spec.group] = GroupHandle(
            spec,
            start(spec),
            silence_s=10 * spec.heartbeat_s if silence_s is None else silence_s,
            start_timeout_s=start_timeout_s,
            max_sequences=max_sequences,
        )
        return handle

    async def close(self) -> None:
        """End all groups, and listen no more."""
        await asyncio.gather(*(handle.close() for handle in self._handles.values()))
        if self._server is not None:
            self._server.close()
        if self._folder is not None:
            self._folder.remove()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Somebody calls: connect them with the group they prove to be, or hang up."""
        if self._num_unproven >= MAX_UNPROVEN:
            writer.close()
            return
        self._num_unproven += 1
        try:
            async with asyncio.timeout(proof.HANDSHAKE_S):
                handle = await self._proven(reader, writer)
        except (proof.NotProven, GarbledFrame, msgspec.DecodeError, OSError, EOFError) as error:
            why = str(error) or type(error).__name__
            log.warning("a connection to the groups' listener was refused: %s", why[:300])
            writer.close()
            return
        finally:
            self._num_unproven -= 1
        handle.connect(reader, writer)

    async def _proven(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> GroupHandle:
        question = proof.ask()
        writer.write(frame(msgspec.msgpack.encode(question)))
        frames = Frames(proof.MAX_PROOF_BYTES)
        found: list[bytes] = []
        while not found:
            data = await reader.read(proof.MAX_PROOF_BYTES)
            if not data:
                raise EOFError("it hung up before it proved to be a group")
            found = frames.feed(data)
        given = msgspec.msgpack.decode(found[0], type=proof.Answer)
        handle = self._handles.get(given.group)
        if handle is None or len(found) > 1 or not frames.is_empty:
            raise proof.NotProven(f"no group {given.group[:200]!r} is waited for")
        welcome = proof.welcome(question, given, bytes.fromhex(handle.spec.key))
        if handle.is_connected or handle.lost is not None:
            raise proof.NotProven(f"group {given.group[:200]!r} is not waited for")
        writer.write(frame(msgspec.msgpack.encode(welcome)))
        return handle


def _is_six(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == 6
    except ValueError:
        return False
