"""``WorkerGroup``: the engine's side of one group of ranks, from their start to their end."""

import collections
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Sequence
from multiprocessing import AuthenticationError
from multiprocessing import connection as mp
from multiprocessing.connection import Connection

import msgspec

from recipes.serve.model_runner import RunnerLost
from recipes.serve.own_folder import OwnFolder, sweep
from recipes.serve.parallel.layout import Layout
from recipes.serve.parallel.listening import limit_waits, listen
from recipes.serve.parallel.messages import (
    MAX_FRAME_BYTES,
    Failed,
    Order,
    Ping,
    Pong,
    Ready,
    Report,
    Result,
    Stop,
    decode_report,
    encode,
)
from recipes.serve.parallel.rank_spec import RankSpec
from recipes.serve.parallel.start import UNKNOWN, Ranks, Start

log = logging.getLogger("recipes.serve")
GRACE_S = 1.0
"""After a first sign of death, how long to listen for who was first."""
SPEAK_S = 5.0
"""How long a rank may take to answer a ping, or to read what is sent to it."""


class WorkerGroup:
    """Ranks that have all loaded their part, and a line to each.

    Args:
        layout: of the ranks.
        make_specs: from the address to call, the key to know and a folder of its own, the specs.
        start: brings the processes to life.
        start_timeout_s: longest they may take to load.

    Raises:
        RunnerLost: a rank failed to start; all are ended then.
        ValueError: temporary files go where no socket can be.
    """

    def __init__(
        self,
        layout: Layout,
        make_specs: Callable[[str, str, str], Sequence[RankSpec]],
        start: Start,
        *,
        host: str | None = None,
        start_timeout_s: float = 600.0,
    ) -> None:
        self.layout = layout
        self.weight_bytes = 0
        self._lines: dict[int, Connection] = {}
        self._heard: collections.deque[tuple[int, Report | None]] = collections.deque()
        self._ranks: Ranks | None = None
        for left in sweep():
            log.info("removed %s, which a process that is gone has left", left)
        self._folder = OwnFolder("ranks")
        self._key = os.urandom(32)
        try:
            listener, address = listen(self._folder.path, host)
            with listener:
                self._ranks = start(make_specs(address, self._key.hex(), self._folder.path))
                deadline = time.monotonic() + start_timeout_s
                self._accept_all(listener, deadline)
            self._await_ready(deadline)
        except OSError as error:
            self.end()
            raise RunnerLost(f"the model did not start: {error}") from error
        except BaseException:
            self.end()
            raise

    # ---- working ----

    def send(self, order: Order) -> None:
        """Give all ranks the same order.

        Raises:
            RunnerLost: one does not take it.
        """
        frame = encode(order)
        for rank, line in self._lines.items():
            try:
                line.send_bytes(frame)
            except OSError as error:
                raise self._lost({rank: error}) from None

    def result(self, number: int, timeout_s: float, since_s: float) -> Result:
        """What the sampling rank found in a step; older results are dropped.

        Raises:
            RunnerLost: a rank died or failed, or there was none ``timeout_s`` after ``since_s``.
        """
        deadline = since_s + timeout_s
        while True:
            while self._heard:  # maybe before the result that was asked for last
                rank, report = self._heard.popleft()
                if isinstance(report, Result) and report.number == number:
                    return report
                if isinstance(report, Failed) or report is None:
                    raise self._lost({rank: report})
            found = self._reports(deadline)  # what is there counts, however late it is asked for
            if not found and time.monotonic() >= deadline:
                raise self._stuck(timeout_s)
            self._heard.extend(found)

    def has_result(self, number: int, timeout_s: float, wakes: Sequence[int] = ()) -> bool:
        """Whether ``result`` has something to return or raise, once it has; False after so long, or
        when one of the files ``wakes`` can be read.
        """
        deadline = time.monotonic() + timeout_s
        while not any(_settles(report, number) for _, report in self._heard):
            found = self._reports(deadline, wakes)
            if not found:
                return False
            self._heard.extend(found)
        return True

    def is_broken(self) -> bool:
        """Whether a rank has ended, without waiting; what ranks have told is left for later."""
        lines = mp.wait(list(self._lines.values()), 0)
        return bool(lines) and (self._ranks is None or bool(self._ranks.exits()))

    def end(self, patience_s: float = 0.0) -> None:
        """End all ranks, leaving nothing behind; those idle may end by themselves first."""
        if patience_s and self._ranks is not None:
            with contextlib.suppress(RunnerLost):
                self.send(Stop())
            deadline = time.monotonic() + patience_s
            while time.monotonic() < deadline:
                if len(self._ranks.exits()) == self.layout.num_ranks:
                    break
                time.sleep(0.005)
        for line in self._lines.values():
            line.close()
        self._lines = {}
        if self._ranks is not None:
            self._ranks.end()
        self._folder.remove()

    # ---- starting ----

    def _accept_all(self, listener: socket.socket, deadline: float) -> None:
        while len(self._lines) < self.layout.num_ranks:
            sock = None
            with contextlib.suppress(TimeoutError):
                sock, _ = listener.accept()
            if sock is None:
                self._check_starting(deadline)
                continue
            limit_waits(sock, SPEAK_S)
            line = Connection(sock.detach())
            try:
                mp.deliver_challenge(line, self._key)  # type: ignore[attr-defined]
                mp.answer_challenge(line, self._key)  # type: ignore[attr-defined]
                rank = int.from_bytes(line.recv_bytes(4), "little")
                if rank in self._lines or rank >= self.layout.num_ranks:
                    raise EOFError
            except (AuthenticationError, EOFError, OSError):
                line.close()  # somebody else
                continue
            self._lines[rank] = line

    def _await_ready(self, deadline: float) -> None:
        waiting = set(self._lines)
        while waiting:
            for rank, report in self._reports(time.monotonic() + 0.2):
                if isinstance(report, Ready):
                    self.weight_bytes += report.weight_bytes
                    waiting.discard(rank)
                elif isinstance(report, Failed) or report is None:
                    raise self._lost({rank: report})
            self._check_starting(deadline)

    def _check_starting(self, deadline: float) -> None:
        ended = {} if self._ranks is None else self._ranks.exits()
        silent = [rank for rank in ended if rank not in self._lines]
        if silent:
            raise self._lost({silent[0]: None})
        if time.monotonic() >= deadline:
            missing = [r for r in range(self.layout.num_ranks) if r not in self._lines]
            names = ", ".join(map(self.layout.name, missing)) or "some ranks"
            raise RunnerLost(f"the model did not start: {names} not ready in time")

    # ---- hearing ----

    def _reports(
        self, deadline: float, wakes: Sequence[int] = ()
    ) -> list[tuple[int, Report | None]]:
        """What has been told, waiting for the first of it; None of a rank whose line has ended.
        Nothing, if only one of ``wakes`` can be read.
        """
        ranks = {line: rank for rank, line in self._lines.items()}
        left = max(0.0, deadline - time.monotonic())
        found: list[tuple[int, Report | None]] = []
        for line in mp.wait([*ranks, *wakes], left):
            if not isinstance(line, Connection):
                continue
            try:
                found.append((ranks[line], decode_report(line.recv_bytes(MAX_FRAME_BYTES))))
            except (EOFError, OSError, msgspec.DecodeError):
                found.append((ranks[line], None))
        return found

    # ---- what went wrong ----

    def _lost(self, first: dict[int, object]) -> RunnerLost:
        """Why the group is at an end: the rank that failed first, with its traceback."""
        heard = {rank: told for rank, told in self._heard if told is None or type(told) is Failed}
        first = {**heard, **first}
        failures = {rank: told for rank, told in first.items() if isinstance(told, Failed)}
        for rank in set(first) - set(failures):
            told = _last_words(self._lines.pop(rank, None))
            if told is not None:
                failures[rank] = told
        gone = set(first) - set(failures)
        exits: dict[int, int] = {}
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            exits = {} if self._ranks is None else self._ranks.exits()
            if not set(self._lines) - set(failures) and gone <= set(exits):
                break
            for rank, report in self._reports(time.monotonic() + 0.02):
                if isinstance(report, Failed):
                    failures[rank] = report
                elif report is None:
                    self._lines.pop(rank).close()
                    gone.add(rank)
            if not self._lines:
                time.sleep(0.005)
        silent = sorted(rank for rank in gone | set(exits) if rank not in failures)
        own = [rank for rank, told in failures.items() if not told.lost_peer]
        if silent and not own:
            return RunnerLost(f"{self.layout.name(silent[0])} {_how(exits.get(silent[0]))}")
        rank = min(own or failures, key=lambda r: failures[r].at)
        text = failures[rank].traceback
        last = text.strip().splitlines()[-1]
        return RunnerLost(f"{self.layout.name(rank)} failed: {last}\n{text}")

    def _stuck(self, timeout_s: float) -> RunnerLost:
        """Nothing came: ask every rank where it is."""
        with contextlib.suppress(RunnerLost):
            self.send(Ping())
        pongs: dict[int, Pong] = {}
        deadline = time.monotonic() + min(SPEAK_S, timeout_s)
        while len(pongs) < len(self._lines) and time.monotonic() < deadline:
            for rank, report in self._reports(deadline):
                if isinstance(report, Failed) or report is None:
                    return self._lost({rank: report})
                if isinstance(report, Pong):
                    pongs[rank] = report
        mute = [rank for rank in self._lines if rank not in pongs]
        head = f"no step finished within {timeout_s:g} s"
        if mute:
            names = ", ".join(map(self.layout.name, mute))
            head += f": {names} does not answer"
        stacks = (f"{self.layout.name(r)} is at\n{pong.stack}" for r, pong in pongs.items())
        return RunnerLost("\n".join([head, *stacks]))


def _settles(report: Report | None, number: int) -> bool:
    """Whether a wait for a step's result ends with it."""
    is_lost = report is None or isinstance(report, Failed)
    return is_lost or (isinstance(report, Result) and report.number == number)


def _last_words(line: Connection | None) -> Failed | None:
    """What a rank that takes nothing any more has told before it ended."""
    with contextlib.suppress(EOFError, OSError, msgspec.DecodeError):
        while line is not None and line.poll():
            report = decode_report(line.recv_bytes(MAX_FRAME_BYTES))
            if isinstance(report, Failed):
                return report
    return None


def _how(code: int | None) -> str:
    if code is None:
        return "does not take part any more"
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    if code == UNKNOWN:
        return "is gone, its process or its machine"
    return f"ended with exit status {code}"
