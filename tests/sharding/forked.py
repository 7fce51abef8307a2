"""Work on real gloo ranks: forked from the test, so torch is imported once."""

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def run_forked(
    num_ranks: int, work: Callable[[int], Any], folder: Path, timeout_s: float = 60.0
) -> list[Any]:
    """What ``work(rank)`` returned on every rank of a gloo job; pickled, so plain data or tensors.

    Raises:
        AssertionError: with the traceback of the first rank that failed, or naming those late.
    """
    context = multiprocessing.get_context("fork")
    store = folder / f"store-{time.monotonic_ns()}"
    ends = [context.Pipe(duplex=False) for _ in range(num_ranks)]
    ranks = [
        context.Process(target=_rank, args=(rank, num_ranks, work, str(store), ends[rank][1]))
        for rank in range(num_ranks)
    ]
    try:
        for rank in ranks:
            rank.start()
        deadline = time.monotonic() + timeout_s
        found: list[Any] = []
        for rank, (reader, _) in enumerate(ends):
            assert reader.poll(max(0.0, deadline - time.monotonic())), f"rank {rank} is late"
            ok, value = reader.recv()
            assert ok, f"rank {rank}:\n{value}"
            found.append(value)
        return found
    finally:
        for rank in ranks:
            if rank.pid is not None:
                rank.kill()
                rank.join()


def _rank(
    rank: int, num_ranks: int, work: Callable[[int], Any], store: str, writer: Connection
) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks
        )
        message = (True, work(rank))
        dist.barrier()  # nobody leaves while another still talks to it
    except BaseException:
        message = (False, traceback.format_exc())
    writer.send(message)
    writer.close()
    time.sleep(0.2)  # the reader has it before the process goes
    os._exit(0)
