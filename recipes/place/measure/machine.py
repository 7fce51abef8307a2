"""What this machine is, in a line: for the provenance of what was measured on it."""

import functools
import os
import platform
from pathlib import Path

import torch


@functools.cache
def processor() -> str:
    """Its processor's name, without what a profile's text may not hold."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2]
                break
    return " ".join(name.replace("#", " ").split()) or "unknown"


def machine_line(num_threads: int) -> str:
    """Processor, versions and threads."""
    threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    python = platform.python_version()
    cores = len(os.sched_getaffinity(0))
    versions = f"torch {torch.__version__}, Python {python}"
    return f"{processor()}, {cores} cores, {threads} a rank, {versions}"
