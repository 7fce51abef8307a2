"""``run_ranks``: work on several ranks of this machine, each a process, in one job."""

import functools
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

TOLD, DONE, FAILED = "told", "done", "failed"
"""What a rank's messages are."""

EXIT_S = 5.0
"""What a rank is given to be gone, once its end of the pipe is closed."""


def run_ranks(
    num_ranks: int,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    device_type: str,
    *,
    timeout_s: float = 600.0,
    hear: Callable[[Any], None] | None = None,
) -> list[Any]:
    """What ``work(device, *arguments)`` returned on every rank.

    CPU ranks are forked, so torch is imported once, have one thread each and talk over gloo; on
    accelerators ranks are spawned, one a device, and talk over NCCL.

    Args:
        work: a function of a module; what it takes and returns can be pickled.
        timeout_s: for all ranks to be done, counted anew whenever one of them tells something.
        hear: called here with what ranks tell while they work. With it, ``work`` is also given
            ``tell``, a function of one argument that can be pickled.

    Raises:
        RuntimeError: with the traceback of the first rank that failed; a rank that was killed.
        TimeoutError: ranks not done within ``timeout_s``.
    """
    context: Any = multiprocessing.get_context("fork" if device_type == "cpu" else "spawn")
    with tempfile.TemporaryDirectory() as folder:
        readers: list[Connection] = []
        ranks: list[Any] = []
        try:
            for rank in range(num_ranks):
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(
                    target=_rank,
                    args=(rank, num_ranks, device_type, f"{folder}/store", writer),
                    kwargs={"work": work, "arguments": arguments, "heard": hear is not None},
                    daemon=True,
                )
                process.start()
                writer.close()  # so that its end is closed when the rank goes
                readers.append(reader)
                ranks.append(process)
            return _results(readers, ranks, timeout_s, hear)
        finally:
            for process in ranks:
                process.kill()
                process.join()
            for reader in readers:
                reader.close()


def _results(
    readers: list[Connection],
    ranks: list[Any],
    timeout_s: float,
    hear: Callable[[Any], None] | None,
) -> list[Any]:
    found: dict[int, Any] = {}
    deadline = time.monotonic() + timeout_s
    while len(found) < len(ranks):
        open_ones = [at for at in range(len(ranks)) if at not in found]
        by_end = {readers[at]: at for at in open_ones} | {
            ranks[at].sentinel: at for at in open_ones
        }
        ready = wait(by_end, max(0.0, deadline - time.monotonic()))
        if not ready:
            late = f"rank {open_ones[0]} of {len(ranks)}"
            raise TimeoutError(f"{late}: not within {timeout_s} s")
        for at in sorted({by_end[end] for end in ready}):  # type: ignore[index]
            message = _message(readers[at])
            if message is None:
                ranks[at].join(EXIT_S)
                code = ranks[at].exitcode
                raise RuntimeError(f"rank {at} of {len(ranks)}: ended without a word, exit {code}")
            kind, value = pickle.loads(message)
            if kind == FAILED:
                raise RuntimeError(f"rank {at} of {len(ranks)}:\n{value}")
            if kind == DONE:
                found[at] = value
            elif hear is not None:
                hear(value)
                deadline = time.monotonic() + timeout_s
    return [found[at] for at in range(len(ranks))]


def _message(reader: Connection) -> bytes | None:
    """None where there is none, or only the beginning of one: the rank is gone."""
    try:
        return reader.recv_bytes() if reader.poll() else None
    except (EOFError, OSError):
        return None


def _rank(
    rank: int,
    num_ranks: int,
    device_type: str,
    store: str,
    writer: Connection,
    *,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    heard: bool,
) -> None:
    torch.set_num_threads(1)
    try:
        device = torch.device(device_type, rank) if device_type != "cpu" else torch.device("cpu")
        if device_type == "cuda":
            torch.cuda.set_device(device)
        backend = "gloo" if device_type == "cpu" else "nccl"
        dist.init_process_group(
            backend, init_method=f"file://{store}", rank=rank, world_size=num_ranks
        )
        by_name = {"tell": functools.partial(_send, writer, TOLD)} if heard else {}
        found, kind = work(device, *arguments, **by_name), DONE
        dist.barrier()  # nobody leaves while another still talks to it
    except BaseException:
        found, kind = traceback.format_exc(), FAILED
    _send(writer, kind, found)
    writer.close()
    time.sleep(0.2)  # the reader has it before the process goes
    os._exit(0)


def _send(writer: Connection, kind: str, value: Any) -> None:
    writer.send_bytes(pickle.dumps((kind, value)))  # by value: shared memory goes with the process
