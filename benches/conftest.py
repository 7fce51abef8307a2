"""The ``timed`` fixture: one way to time a call and to record what it did."""

import dataclasses
from collections.abc import Callable, Mapping
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
    reaches in the same process go to ``extra_info``, beside device, versions and commit; on an
    accelerator they are those of the kernels alone, whose time is recorded beside the wall time.
    ``peers`` (name to call) are timed in turn with ``call`` and recorded with their ratios. Under
    ``--benchmark-disable`` the call runs once, unmeasured.
    """

    def run(
        call: Callable[[], Any],
        *,
        work: Work | None = None,
        dtype: torch.dtype = torch.bfloat16,
        cold: bool = True,
        budget_s: float = 0.5,
        peers: Mapping[str, machine.Call] | None = None,
        **info: object,
    ) -> Any:
        if benchmark.disabled:
            for peer in (peers or {}).values():
                peer()
            return benchmark(call)
        result = call()
        once = machine.seconds(call, device, cold=cold)
        rounds = max(5, min(200, int(budget_s / max(once, 1e-6))))

        def timed_call() -> None:
            call()
            machine.wait(device)

        flush = (lambda: machine.flush_caches(device)) if cold else None
        benchmark.pedantic(timed_call, setup=flush, rounds=rounds, warmup_rounds=1)
        wall = machine.Timing.of(benchmark.stats.stats.data)
        spread = {"p10_s": wall.p10_s, "p90_s": wall.p90_s, "dtype": str(dtype).split(".")[-1]}
        benchmark.extra_info.update(machine.environment(), cold=cold, **spread, **info)
        best = wall
        if peers or device.type == "cuda":
            calls = {"ours": call, **(peers or {})}
            found = machine.interleaved(calls, device, budget_s=budget_s, cold=cold)
            best = found["ours"].kernel or wall
            benchmark.extra_info["timings"] = {n: dataclasses.asdict(t) for n, t in found.items()}
            benchmark.extra_info["peer_ratios"] = {
                name: round(times.best.median_s / found["ours"].best.median_s, 3)
                for name, times in found.items()
                if name != "ours"
            }
        if work is not None:
            rates = machine.rates(work, best.median_s, device, dtype)
            benchmark.extra_info.update(rates)
        return result

    return run
