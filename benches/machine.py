"""What this machine can do, measured here and now, and how calls are timed.

Every share of a peak in the benches is a share of these measurements, taken in the same process,
and every speed-up is a ratio of two calls timed in turn (``interleaved``, ``race``). On an
accelerator a call has two times: the kernels alone (a captured graph replayed between two events,
caches flushed before) and the eager call with everything Python does around it.
"""

import dataclasses
import functools
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from blocks._work import Work

Call = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of one call over many rounds: the median, and where 10 and 90 % of rounds lie."""

    median_s: float
    p10_s: float
    p90_s: float
    rounds: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Timing":
        """From the seconds of each round.

        >>> Timing.of([3.0, 1.0, 2.0])
        Timing(median_s=2.0, p10_s=1.0, p90_s=3.0, rounds=3)
        """
        ordered = sorted(seconds)
        low, high = (round((len(ordered) - 1) * share) for share in (0.1, 0.9))
        return cls(statistics.median(ordered), ordered[low], ordered[high], len(ordered))


@dataclasses.dataclass(frozen=True)
class Times:
    """The times of one call.

    wall: the eager call until the device has finished it.
    kernel: the device's own time, of a replayed graph or of the queued call; None on a CPU.
    note: why the call could not be captured, so that its eager launches were timed.
    """

    wall: Timing
    kernel: Timing | None = None
    note: str = ""

    @property
    def best(self) -> Timing:
        """The kernel time where there is one, else the wall time."""
        return self.kernel or self.wall


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


def race(calls: Mapping[str, Call], device: torch.device, *, rounds: int = 9, cold: bool = True):
    """Median wall seconds of each call, taken in turn so that noise strikes all alike."""
    for call in calls.values():
        call()
        call()
    return {name: t.median_s for name, t in _walls(calls, device, rounds, cold).items()}


def _walls(
    calls: Mapping[str, Call], device: torch.device, rounds: int, cold: bool
) -> dict[str, Timing]:
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(seconds(call, device, cold=cold))
    return {name: Timing.of(times) for name, times in found.items()}


def interleaved(
    calls: Mapping[str, Call],
    device: torch.device,
    *,
    budget_s: float = 1.0,
    min_rounds: int = 5,
    max_rounds: int = 100,
    cold: bool = True,
    graph: bool = True,
) -> dict[str, Times]:
    """Time all calls in turn, A B A B, in as many rounds as the budget allows.

    Args:
        budget_s: of timed seconds, for all calls together.
        min_rounds, max_rounds: fewest and most rounds.
        cold: flush the caches before every call, outside its time.
        graph: also time the kernels alone, on an accelerator.
    """
    once = 0.0
    for call in calls.values():
        call()
        call()
        once += seconds(call, device, cold=cold)
    rounds = max(min_rounds, min(max_rounds, int(budget_s / max(once, 1e-6))))
    walls = _walls(calls, device, rounds, cold)
    if device.type != "cuda" or not graph:
        return {name: Times(wall) for name, wall in walls.items()}
    runs: dict[str, Call] = {}
    notes: dict[str, str] = {}
    for name, call in calls.items():
        captured = _captured(call)
        if isinstance(captured, str):
            notes[name] = captured
            runs[name] = call
        else:
            runs[name] = captured.replay
    kernels = _kernels(runs, device, rounds, cold, slow_to_launch=frozenset(notes))
    return {
        name: Times(wall, kernels.get(name), notes.get(name, "")) for name, wall in walls.items()
    }


def _captured(call: Call) -> "torch.cuda.CUDAGraph | str":
    """The call as a graph, or why it cannot be one."""
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    try:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            call()
        graph.replay()
        torch.cuda.synchronize()
    except Exception as error:  # a peer that waits for the device, say
        torch.cuda.synchronize()
        return f"no graph: {type(error).__name__}: {error}".splitlines()[0][:160]
    return graph


HEAD_START_CYCLES = 2_000_000
"""The device idles about a millisecond, so that the host has queued a call before it begins."""


def _kernels(
    runs: Mapping[str, Call],
    device: torch.device,
    rounds: int,
    cold: bool,
    *,
    slow_to_launch: frozenset[str] = frozenset(),
) -> dict[str, Timing]:
    """Device seconds of each run between two events, taken in turn.

    The flush is queued before each run, so the host is ahead of the device and no launch shows;
    eager calls, which take the host longer than a graph, get a head start besides.
    """
    marks: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            if cold:
                _eviction_buffer(device).add_(1.0)
            if name in slow_to_launch:
                torch.cuda._sleep(HEAD_START_CYCLES)
            begin.record()
            run()
            end.record()
            marks[name].append((begin, end))
    torch.cuda.synchronize(device)
    return {
        name: Timing.of([begin.elapsed_time(end) / 1e3 for begin, end in pairs])
        for name, pairs in marks.items()
    }


def launch_seconds(call: Call, device: torch.device, *, calls: int = 50, rounds: int = 9) -> float:
    """Host seconds of one call that does not wait for the device: the median over ``rounds``."""
    call()
    found = []
    for _ in range(rounds):
        wait(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        found.append((time.perf_counter() - start) / calls)
    wait(device)
    return statistics.median(found)


@functools.cache
def peak_bandwidth(device: torch.device) -> float:
    """Bytes a second this device moves: reading on a CPU, copying on an accelerator."""
    size = (2 << 30) if device.type == "cuda" else (128 << 20)
    source = torch.ones(size // 4, device=device)
    if device.type == "cuda":
        target = torch.empty_like(source)
        return 2 * size / _device_seconds(lambda: target.copy_(source), device)
    best = min(seconds(source.sum, device, cold=False) for _ in range(12))
    return size / best


@functools.cache
def peak_flops(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """Floating-point operations a second of a large matrix product of random ``dtype`` numbers."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    if device.type == "cuda":
        return 2 * size**3 / _device_seconds(lambda: a @ a, device)
    best = min(seconds(lambda: a @ a, device, cold=False) for _ in range(8))
    return 2 * size**3 / best


def _device_seconds(call: Call, device: torch.device) -> float:
    call()
    graph = _captured(call)
    assert not isinstance(graph, str), graph
    return _kernels({"": graph.replay}, device, 20, cold=False)[""].median_s


@functools.cache
def environment() -> dict[str, str]:
    """Device, versions and commit, as every published number carries them.

    ``$BLOCKS_COMMIT`` names the commit of a copy without its git folder.
    """
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    try:
        from triton import __version__ as triton_version
    except ImportError:
        triton_version = "none"
    return {
        "device": device_name(),
        "driver": _driver(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": commit or os.environ.get("BLOCKS_COMMIT", "unknown"),
        "date": time.strftime("%Y-%m-%d"),
    }


def _driver() -> str:
    if not torch.cuda.is_available():
        return "none"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True).stdout.split()[0]
    except (OSError, IndexError):
        return "unknown"


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
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def rates(work: Work, median_s: float, device: torch.device, dtype: torch.dtype) -> dict:
    """What a call did a second, and the share of what the machine reaches in this process."""
    bandwidth, flops = peak_bandwidth(device), peak_flops(device, dtype)
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
