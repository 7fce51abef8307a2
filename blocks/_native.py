"""C++ sources compiled on first use with the machine's own compiler and loaded through ctypes.

A library is plain C++ behind a C interface: no torch headers, so it builds in a second or two and
does not depend on the torch version. Built files are kept under ``$LLM_BLOCKS_CACHE`` (default
``~/.cache/llm-blocks``), named by a digest of source, flags, compiler and processor.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)


PLAIN_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off")
"""For host code that must give the same bits as Python: no fused operations, and no OpenMP."""


@functools.cache
def compiler() -> str | None:
    """Path of the C++ compiler (``$CXX``, ``c++``, ``g++`` or ``clang++``), or None."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    return None


@functools.cache
def load(source: Path) -> ctypes.CDLL:
    """Compile ``source`` if its build is not cached, and load it.

    torch must be imported first: its OpenMP runtime is then the one the library binds to, and
    both share one thread pool and ``torch.set_num_threads``.

    Raises:
        RuntimeError: no compiler, or the compiler refused; with its own message.
    """
    import torch  # noqa: F401  (its OpenMP runtime is loaded before ours is looked up)

    return _load(source, FLAGS)


@functools.cache
def load_plain(source: Path) -> ctypes.CDLL:
    """The same for host code without OpenMP, whose arithmetic is Python's; needs no torch.

    Raises:
        RuntimeError: no compiler, or the compiler refused; with its own message.
    """
    return _load(source, PLAIN_FLAGS)


def _load(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    cxx = compiler()
    if cxx is None:
        raise RuntimeError("expected a C++ compiler, found none; install g++ or set CXX")
    target = _cache_dir() / f"{source.stem}-{_digest(source, cxx, flags)}.so"
    if not target.exists():
        _compile(cxx, source, target, flags)
    return ctypes.CDLL(str(target))


def _cache_dir() -> Path:
    default = Path.home() / ".cache" / "llm-blocks"
    path = Path(os.environ.get("LLM_BLOCKS_CACHE", default)) / "native"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _digest(source: Path, cxx: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([cxx, "--version"], capture_output=True, text=True).stdout
    seen = hashlib.sha256()
    for header in sorted(source.parent.glob("*.h")):
        seen.update(header.read_bytes())
    for part in (source.read_text(), " ".join(flags), version, platform.machine(), _cpu_flags()):
        seen.update(part.encode())
    return seen.hexdigest()[:16]


def _cpu_flags() -> str:
    """The processor's instruction sets, so that a shared home folder never mixes machines."""
    try:
        with open("/proc/cpuinfo") as info:
            return next((line for line in info if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()


def _compile(cxx: str, source: Path, target: Path, flags: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / target.name
        command = [cxx, *flags, "-o", str(built), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
        os.replace(built, target)  # atomic: parallel builds of the same file cannot clash
