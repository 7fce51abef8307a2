"""What one device computes and reads in a second."""

import itertools
import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from blocks.sharding.cluster import Curve, DeviceKind
from recipes.plan.calibrate.launch import measure_bare, measure_launch
from recipes.plan.calibrate.timing import repeat

SIDES = {"cpu": (16, 32, 64, 128, 256, 512, 768), "cuda": (128, 512, 1024, 2048, 4096, 8192)}
"""Rows, columns and depth of the square matrices that are multiplied."""
TOUCHED = {
    "cpu": tuple(3 << power for power in range(10, 27, 2)),
    "cuda": tuple(3 << power for power in range(16, 31, 2)),
}
"""Bytes that other operations read and write."""
LAUNCH = {
    "cpu": "an operation of a planned step on tensors of a few elements",
    "cuda": "one of many additions of one element",
}


def measure_device(
    device: torch.device,
    dtypes: Sequence[str],
    *,
    budget_s: float,
    num_sharing: int,
    on_progress: Callable[[str], None],
) -> DeviceKind:
    """The kind of this machine's devices, by a probe on one of them with one thread.

    Args:
        dtypes: to multiply in, as torch names them.
        budget_s: for each size of each probe.
        num_sharing: ranks that share the machine's memory, where it has no device memory.
    """
    bare = measure_bare(device, budget_s)
    on_cpu = device.type == "cpu"
    launch = measure_launch(budget_s) if on_cpu else bare
    on_progress(f"least time of an operation: {launch.seconds * 1e6:.1f} us")
    touched = _elementwise(device, budget_s, bare.seconds)
    bandwidth = round(touched.at[-1] / touched.seconds[-1])
    on_progress(f"memory: {bandwidth / 1e9:.1f} GB/s for large tensors")
    curves: dict[str, Curve] = {}
    for dtype in dtypes:
        curves[dtype] = _multiplications(device, dtype, budget_s, bare.seconds)
        on_progress(f"multiplications in {dtype}: up to {_rate(curves[dtype]) / 1e9:.1f} GFLOP/s")
    said = f"measured {measured_on(device)}"
    spread = max(max(c.spread) for c in (touched, *curves.values()))
    return DeviceKind(
        device_name(device),
        {dtype: _rate(curve) for dtype, curve in curves.items()},
        dict.fromkeys(curves, 1.0),
        _memory_bytes(device, num_sharing),
        bandwidth,
        round(launch.seconds, 9),
        {
            "peak_flops": f"{said}: the best rate of square matrices",
            "achieved": f"{said}: the peak is what was reached",
            "memory_bytes": f"{said}: "
            + (f"what the machine has, over {num_sharing} ranks" if on_cpu else "of the device"),
            "memory_bytes_per_s": f"{said}: the mean of an addition, a GELU and a softmax of "
            f"{int(touched.at[-1]) >> 20} MiB",
            "launch_s": f"{said}: {LAUNCH[device.type]}; spread {launch.spread:.0%}, of the other "
            f"probes up to {spread:.0%}",
        },
        curves,
        touched,
    )


def measured_on(device: torch.device) -> str:
    """When and with what, for the sources of numbers."""
    return f"{time.strftime('%Y-%m-%d')} on {device_name(device)}, torch {torch.__version__}"


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        info = ""
    match = re.search(r"model name\s*:\s*(.+)", info)
    return f"{match.group(1).strip() if match else platform.machine()} core"


def _elementwise(device: torch.device, budget_s: float, launch_s: float) -> Curve:
    """The mean of an addition, a GELU and a softmax that read and write as much."""

    def calls_of(num_bytes: int) -> list[Callable[[], object]]:
        a = torch.ones(num_bytes // 12, device=device)
        b, c = torch.ones_like(a), torch.ones_like(a)
        x = torch.ones(num_bytes // 512, 64, device=device)
        y = torch.ones_like(x)
        return [
            lambda: torch.add(a, b, out=c),
            lambda: torch.ops.aten.gelu.out(x, out=y),
            lambda: torch.softmax(x, 1, out=y),
        ]

    sizes = TOUCHED[device.type]
    each = zip(*(calls_of(size) for size in sizes), strict=True)
    curves = [_curve(sizes, calls, device, budget_s / 3, launch_s) for calls in each]
    seconds = zip(*(curve.seconds for curve in curves), strict=True)
    spreads = zip(*(curve.spread for curve in curves), strict=True)
    means = tuple(float(f"{sum(three) / 3:.4g}") for three in seconds)
    return Curve(tuple(sizes), means, tuple(max(three) for three in spreads))


def _multiplications(device: torch.device, dtype: str, budget_s: float, launch_s: float) -> Curve:
    def call_of(side: int) -> Callable[[], object]:
        a = torch.randn(side, side, device=device).to(getattr(torch, dtype))
        out = torch.empty_like(a)
        return lambda: torch.mm(a, a, out=out)

    sides = SIDES[device.type]
    calls = [call_of(side) for side in sides]
    return _curve([2 * side**3 for side in sides], calls, device, budget_s, launch_s)


def _curve(
    sizes: Sequence[int],
    calls: Sequence[Callable[[], object]],
    device: torch.device,
    budget_s: float,
    launch_s: float,
) -> Curve:
    """Without the launch, which every operation is charged by itself; never falling."""
    found = [repeat(call, device, budget_s) for call in calls]
    net = [max(sample.seconds - launch_s, 0.1 * sample.seconds) for sample in found]
    rising = tuple(float(f"{seconds:.4g}") for seconds in itertools.accumulate(net, max))
    return Curve(tuple(sizes), rising, tuple(round(sample.spread, 4) for sample in found))


def _rate(curve: Curve) -> int:
    rates = (flops / seconds for flops, seconds in zip(curve.at, curve.seconds, strict=True))
    return round(max(rates))


def _memory_bytes(device: torch.device, num_sharing: int) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // num_sharing
