"""Work on real gloo ranks: forked from the test, so torch is imported once."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from recipes.plan.ranks import run_ranks

T = TypeVar("T")


def run_forked(num_ranks: int, work: Callable[[int], T], timeout_s: float = 60.0) -> list[T]:
    """What ``work(rank)`` returned on every rank of a gloo job; see ``run_ranks``."""
    return run_ranks(
        num_ranks, lambda device: work(dist.get_rank()), (), "cpu", timeout_s=timeout_s
    )
