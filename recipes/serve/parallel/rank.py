"""What a rank does, whoever started its process: answer the engine until it says stop."""

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Client, Connection

import torch
import torch.distributed as dist

from recipes.serve.parallel.meeting import join
from recipes.serve.parallel.messages import (
    MAX_FRAME_BYTES,
    Failed,
    Ping,
    Pong,
    Ready,
    Report,
    Step,
    Stop,
    decode_order,
    encode,
)
from recipes.serve.parallel.rank_spec import RankSpec
from recipes.serve.parallel.stage_runner import StageRunner


def run_rank(spec: RankSpec, *, orphaned: Callable[[int], object] = os._exit) -> None:
    """Be a rank: join the others, load a part of the model, compute step after step.

    Returns when the engine says stop. An error is told to the engine and raised.

    Args:
        orphaned: called with 1, in a thread, when the engine is gone: this thread may hang in a
            collective then, and nothing it could still do is of use.
    """
    torch.set_num_threads(spec.num_threads)
    line = _Line(spec, orphaned)
    try:
        stage = StageRunner(spec, join(spec))
        line.tell(Ready(os.getpid(), stage.weight_bytes))
        while (step := line.next()) is not None:
            result = stage.run(step)
            line.number = 0
            if result is not None:
                line.tell(result)
        stage.settle()
    except BaseException as error:
        line.tell(Failed(time.time(), traceback.format_exc(), _is_about_peers(error)))
        raise


class _Line:
    """The connection to the engine. A thread reads it, so that even a rank that hangs answers."""

    def __init__(self, spec: RankSpec, orphaned: Callable[[int], object]) -> None:
        self.number = 0
        self._orphaned = orphaned
        self._connection = _connect(spec)
        self._connection.send_bytes(spec.rank.to_bytes(4, "little"))
        self._steps: queue.SimpleQueue[Step | None] = queue.SimpleQueue()
        self._writing = threading.Lock()
        self._main = threading.get_ident()
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def next(self) -> Step | None:
        """The next step, once there is one; None to stop."""
        step = self._steps.get()
        self.number = 0 if step is None else step.number
        return step

    def tell(self, report: Report) -> None:
        with self._writing:
            try:
                self._connection.send_bytes(encode(report))
            except OSError:
                self._orphaned(1)

    def _read(self) -> None:
        try:
            while True:
                order = decode_order(self._connection.recv_bytes(MAX_FRAME_BYTES))
                if isinstance(order, Ping):
                    stack = traceback.format_stack(sys._current_frames()[self._main])
                    self.tell(Pong(self.number, "".join(stack)))
                    continue
                self._steps.put(None if isinstance(order, Stop) else order)
                if isinstance(order, Stop):
                    return
        except (EOFError, OSError):
            self._orphaned(1)


def _connect(spec: RankSpec) -> Connection:
    key = bytes.fromhex(spec.key)
    if spec.address.startswith("/"):
        return Client(spec.address, "AF_UNIX", authkey=key)
    host, _, port = spec.address.rpartition(":")
    return Client((host, int(port)), "AF_INET", authkey=key)


def _is_about_peers(error: BaseException) -> bool:
    """Whether the error only says that another rank is gone or late."""
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    signs = ("gloo", "nccl", "connection closed by peer", "connection reset", "timed out")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def be_rank(text: str) -> None:
    """The whole life of a process that is a rank and nothing else; does not return."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the engine, which may drain, says when to end
        signal.signal(number, signal.SIG_IGN)
    code = 0
    try:
        run_rank(RankSpec.from_json(text))
    except BaseException:
        code = 1  # told to the engine, which tells the world
    os._exit(code)  # what torch would still tidy up may wait for ranks that are gone
