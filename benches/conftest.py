"""The ``timed`` fixture: one way to time a call and to record what it did."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from benches import machine
from blocks._work import Work


@pytest.fixture
def device() -> torch.device:
    """The accelerator when there is one, else the CPU."""
    return machine.default_device()


@pytest.fixture
def timed(benchmark: Any, device: torch.device) -> Callable[..., Any]:
    """``timed(call, work=..., dtype=..., cold=True, **info)`` times ``call()`` and returns its
    result.

    The caches are flushed before each round (``cold``), outside the timing; the device is waited
    for inside it. With ``work``, FLOPs, bytes, GB/s, TFLOP/s and the share of what the machine
    reaches in the same process go to ``extra_info``, beside device, versions and commit. Under
    ``--benchmark-disable`` the call runs once, unmeasured.
    """

    def run(
        call: Callable[[], Any],
        *,
        work: Work | None = None,
        dtype: torch.dtype = torch.bfloat16,
        cold: bool = True,
        budget_s: float = 0.5,
        **info: object,
    ) -> Any:
        if benchmark.disabled:
            return benchmark(call)
        result = call()
        once = machine.seconds(call, device, cold=cold)
        rounds = max(5, min(200, int(budget_s / max(once, 1e-6))))

        def timed_call() -> None:
            call()
            machine.wait(device)

        flush = (lambda: machine.flush_caches(device)) if cold else None
        benchmark.pedantic(timed_call, setup=flush, rounds=rounds, warmup_rounds=1)
        benchmark.extra_info.update(machine.environment(), cold=cold, **info)
        if work is not None:
            median = benchmark.stats.stats.median
            benchmark.extra_info.update(_rates(work, median, device, dtype))
        return result

    return run


def _rates(work: Work, median_s: float, device: torch.device, dtype: torch.dtype) -> dict:
    bandwidth, flops = machine.peak_bandwidth(device), machine.peak_flops(device, dtype)
    bound_s = max(work.bytes / bandwidth, work.flops / flops)
    return {
        "flops": work.flops,
        "bytes": work.bytes,
        "gb_per_s": round(work.bytes / median_s / 1e9, 2),
        "tflop_per_s": round(work.flops / median_s / 1e12, 4),
        "peak_gb_per_s": round(bandwidth / 1e9, 1),
        "peak_tflop_per_s": round(flops / 1e12, 3),
        "share_of_bandwidth": round(work.bytes / median_s / bandwidth, 3),
        "share_of_flops": round(work.flops / median_s / flops, 3),
        "share_of_roofline": round(bound_s / median_s, 3),
    }
