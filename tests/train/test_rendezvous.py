import random
import threading
import time

import pytest
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from recipes.train.rendezvous import fresh_store


def meet(store: dist.Store, num_ranks: int, late: random.Random, key: str) -> list[bytes]:
    """All ranks come at different moments and leave something; what each finds of rank 0."""
    found: list[bytes] = [b""] * num_ranks

    def come(rank: int) -> None:
        time.sleep(late.random() * 0.02)
        fresh = fresh_store(store, rank, num_ranks, timeout_s=20)
        assert not fresh.check([f"address/{rank}"])
        fresh.set(f"address/{rank}", f"{key} {rank}")
        fresh.wait(["address/0"])
        found[rank] = fresh.get("address/0")

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def leave_early(store: dist.Store, rank: int, num_ranks: int) -> None:
    """A process that comes and is gone before the others are there."""
    with pytest.raises(TimeoutError, match=f"rank {rank} of {num_ranks}"):
        fresh_store(store, rank, num_ranks, timeout_s=0.0)


@given(
    meetings=st.lists(st.integers(1, 4), min_size=2, max_size=4),
    lost=st.lists(st.integers(0, 3), max_size=3),
    seed=st.integers(0, 99),
)
def test_nobody_finds_what_an_earlier_meeting_left(meetings, lost, seed):
    store, late = dist.HashStore(), random.Random(seed)
    for number, num_ranks in enumerate(meetings):
        for rank in lost:
            if 0 < num_ranks > 1 and rank < num_ranks:
                leave_early(store, rank, num_ranks)
        found = meet(store, num_ranks, late, f"meeting {number}")
        assert found == [f"meeting {number} 0".encode()] * num_ranks


def test_who_does_not_come_is_named():
    with pytest.raises(TimeoutError, match=r"rank 0 of 3 waited 0 s for ranks \[1, 2\]"):
        fresh_store(dist.HashStore(), 0, 3, timeout_s=0.0)
