"""``run_ranks``: work on several ranks of this machine, each a process, in one job."""

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist


def run_ranks(
    num_ranks: int,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    device_type: str,
    *,
    timeout_s: float = 600.0,
) -> list[Any]:
    """What ``work(device, *arguments)`` returned on every rank.

    CPU ranks are forked, so torch is imported once, have one thread each and talk over gloo; on
    accelerators ranks are spawned, one a device, and talk over NCCL.

    Args:
        work: a function of a module; what it takes and returns can be pickled.

    Raises:
        RuntimeError: with the traceback of the first rank that failed.
        TimeoutError: ranks not done within ``timeout_s``.
    """
    context: Any = multiprocessing.get_context("fork" if device_type == "cpu" else "spawn")
    with tempfile.TemporaryDirectory() as folder:
        ends = [context.Pipe(duplex=False) for _ in range(num_ranks)]
        ranks = [
            context.Process(
                target=_rank,
                args=(rank, num_ranks, device_type, f"{folder}/store", ends[rank][1]),
                kwargs={"work": work, "arguments": arguments},
                daemon=True,
            )
            for rank in range(num_ranks)
        ]
        try:
            for rank in ranks:
                rank.start()
            deadline = time.monotonic() + timeout_s
            found = []
            for number, (reader, _) in enumerate(ends):
                if not reader.poll(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"rank {number} of {num_ranks}: not within {timeout_s} s")
                ok, value = pickle.loads(reader.recv_bytes())
                if not ok:
                    raise RuntimeError(f"rank {number} of {num_ranks}:\n{value}")
                found.append(value)
            return found
        finally:
            for rank in ranks:
                if rank.pid is not None:
                    rank.kill()
                    rank.join()


def _rank(
    rank: int,
    num_ranks: int,
    device_type: str,
    store: str,
    writer: Connection,
    *,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
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
        message = (True, work(device, *arguments))
        dist.barrier()  # nobody leaves while another still talks to it
    except BaseException:
        message = (False, traceback.format_exc())
    writer.send_bytes(pickle.dumps(message))  # by value: shared memory would go with the process
    writer.close()
    time.sleep(0.2)  # the reader has it before the process goes
    os._exit(0)
