"""What this machine can do, measured here and now, and how calls are timed.

Every share of a peak in the benches is a share of these measurements, taken in the same process,
and every speed-up is a ratio of two calls timed in turn (``race``).
"""

import functools
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

Call = Callable[[], object]


def default_device() -> torch.device:
    """The accelerator when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def wait(device: torch.device) -> None:
    """Wait until the device has finished what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@functools.cache
def _eviction_buffer(device: torch.device) -> torch.Tensor:
    num_bytes = 256 << 20 if device.type == "cuda" else 96 << 20
    return torch.zeros(num_bytes // 4, device=device)


def flush_caches(device: torch.device) -> None:
    """Push everything out of the device's caches by writing a buffer larger than they are."""
    _eviction_buffer(device).add_(1.0)
    wait(device)


def seconds(call: Call, device: torch.device, *, cold: bool = True) -> float:
    """Wall time of one call, the wait for the device included; ``cold`` flushes the caches."""
    if cold:
        flush_caches(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def race(calls: dict[str, Call], device: torch.device, *, rounds: int = 9, cold: bool = True):
    """Median seconds of each call, taken in turn so that noise strikes all alike."""
    for call in calls.values():
        call()
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds(call, device, cold=cold))
    return {name: statistics.median(found) for name, found in times.items()}


@functools.cache
def peak_bandwidth(device: torch.device) -> float:
    """Bytes a second this device moves: reading on a CPU, copying on an accelerator."""
    size = (1 << 30) if device.type == "cuda" else (128 << 20)
    source = torch.ones(size // 4, device=device)
    if device.type == "cuda":
        target = torch.empty_like(source)
        best = min(seconds(lambda: target.copy_(source), device, cold=False) for _ in range(12))
        return 2 * size / best
    best = min(seconds(source.sum, device, cold=False) for _ in range(12))
    return size / best


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Floating-point operations a second of a large matrix product in ``dtype``."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    best = min(seconds(lambda: a @ a, device, cold=False) for _ in range(8))
    return 2 * size**3 / best


@functools.cache
def environment() -> dict[str, str]:
    """Device, versions and commit, as every published number carries them."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    try:
        from triton import __version__ as triton_version
    except ImportError:
        triton_version = "none"
    return {
        "device": device_name(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": commit or "unknown",
    }


def device_name() -> str:
    """Name of the accelerator, or of the processor with the threads torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.machine()
    return f"{name}, {torch.get_num_threads()} threads"
