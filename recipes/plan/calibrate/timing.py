"""What repeated calls take where nothing else holds them up."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch


class Sample(NamedTuple):
    """What repeated calls took.

    seconds: of the fastest call: other work on the machine only ever adds to it.
    spread: how much longer the median is, as a share of it: the error bar.
    """

    seconds: float
    spread: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Sample":
        """
        >>> Sample.of([3.0, 1.0, 2.0])
        Sample(seconds=1.0, spread=1.0)
        """
        low = min(seconds)
        return cls(low, (statistics.median(seconds) - low) / low)


def repeat(call: Callable[[], object], device: torch.device, budget_s: float) -> Sample:
    """Calls until ``budget_s`` is over, at least five times, after one that is not counted.

    On a CPU the seconds are those this thread works, which are the seconds that pass where it has a
    core to itself; on an accelerator those between two events around the call.
    """
    call()
    found: list[float] = []
    began = time.perf_counter()
    while len(found) < 5 or time.perf_counter() - began < budget_s:
        found.append(_seconds(call, device))
    return Sample.of(found)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        before = time.thread_time()
        call()
        return max(time.thread_time() - before, 1e-9)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    last.synchronize()
    return max(first.elapsed_time(last) * 1e-3, 1e-9)
