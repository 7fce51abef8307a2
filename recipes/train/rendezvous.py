"""Meeting afresh on a store that remembers earlier meetings.

torchrun keeps one store while it starts the processes of a run again and again. Addresses that
processes now gone have left there make a new group connect to nobody. Names nobody used before
are safe, so the processes agree on one.
"""

import os
import time
import uuid
from collections.abc import Callable

import torch
import torch.distributed as dist


def join_world(device: str = "cpu", timeout_s: float = 600.0) -> None:
    """``dist.init_process_group`` by the environment that torchrun makes.

    Args:
        device: "cpu" speaks over gloo. "cuda" takes the accelerator with this process's number on
            its machine, and speaks over NCCL about what lies there.

    Raises:
        TimeoutError: not all processes came.
    """
    store, rank, num_ranks = next(iter(dist.rendezvous("env://")))
    store = fresh_store(store, rank, num_ranks, timeout_s=timeout_s)
    backend = "gloo"
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks)


def fresh_store(
    store: dist.Store,
    rank: int,
    num_ranks: int,
    *,
    timeout_s: float = 600.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dist.Store:
    """A part of ``store`` in which nothing is yet; the same one for all ranks that call now.

    Every rank leaves a name made up on the spot. Rank 0 offers its own to every name it finds,
    and again to any that replaces one (that of a process now gone), until all ranks have taken
    it. An offer lies under the name it is made to, so none of an earlier meeting is ever taken.

    Raises:
        TimeoutError: not all ranks came.
    """
    deadline = clock() + timeout_s

    def wait(what: str) -> None:
        if clock() >= deadline:
            raise TimeoutError(f"rank {rank} of {num_ranks} waited {timeout_s:.0f} s for {what}")
        sleep(0.01)

    mine = uuid.uuid4().hex
    if rank > 0:
        store.set(f"blocks/name/{rank}", mine)
        while not store.check([f"blocks/offer/{mine}"]):
            wait("rank 0")
        place = store.get(f"blocks/offer/{mine}").decode()
        store.set(f"blocks/taken/{place}/{rank}", "")
        return dist.PrefixStore(f"blocks/{place}", store)
    missing, offered = set(range(1, num_ranks)), set()
    while missing:
        for other in sorted(missing):
            if store.check([f"blocks/name/{other}"]):
                name = store.get(f"blocks/name/{other}").decode()
                if name not in offered:
                    store.set(f"blocks/offer/{name}", mine)
                    offered.add(name)
            if store.check([f"blocks/taken/{mine}/{other}"]):
                missing.discard(other)
        if missing:
            wait(f"ranks {sorted(missing)}")
    return dist.PrefixStore(f"blocks/{mine}", store)
