"""Other people's kernels, run beside ours where they are installed.

A peer is a small adapter: it imports its package when it is made, says why it cannot run, and its
result is checked before anything is timed. Nothing of theirs is kept here.

    python -m benches.peers      # which peers there are, and which could run here
"""

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[[], Any]
MODULES = (
    "torch_attention",
    "torch_ops",
    "flashinfer",
    "flash_attention",
    "vllm",
    "liger",
    "fla",
    "xformers",
)


@dataclasses.dataclass(frozen=True)
class Peer:
    """One operation of one other library.

    name: as it appears in tables (``flashinfer``).
    operation: which of our operations it stands beside.
    make: from a case (see ``benches.cases``) to the call that is timed. It plans and converts
        layouts outside the call; it raises ``Unfit`` for a case it cannot run.
    needs: modules that must be importable.
    everywhere: runs on a CPU too.
    """

    name: str
    operation: str
    make: Callable[[Any], Call]
    needs: tuple[str, ...] = ()
    everywhere: bool = False

    def missing(self, device: torch.device) -> str:
        """Why it cannot run here; empty when it can."""
        if device.type != "cuda" and not self.everywhere:
            return "needs an accelerator"
        absent = [name for name in self.needs if not _importable(name)]
        return f"{', '.join(absent)} not installed" if absent else ""


class Unfit(Exception):
    """A peer has no kernel for this case; the message says why."""


def theirs(module: str) -> Any:
    """A module of another library, imported when a peer is made."""
    return importlib.import_module(module)


def _importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def every_peer() -> list[Peer]:
    """All of them, in the order of ``MODULES``."""
    return [peer for m in MODULES for peer in importlib.import_module(f"{__name__}.{m}").PEERS]


def ready(
    operation: str, case: Any, device: torch.device, check: Callable[[Any], None]
) -> tuple[dict[str, Call], dict[str, str]]:
    """The peers of an operation that are right on a case, and why the others do not run.

    Args:
        check: raises when a peer's result is wrong.
    """
    calls: dict[str, Call] = {}
    missing: dict[str, str] = {}
    for peer in every_peer():
        if peer.operation != operation:
            continue
        if reason := peer.missing(device):
            missing[peer.name] = reason
            continue
        try:
            call = peer.make(case)
            check(call())
            calls[peer.name] = call
        except AssertionError as error:
            missing[peer.name] = f"wrong result: {error}"[:200]
        except Exception as error:  # a peer that breaks must not stop the others
            missing[peer.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return calls, missing
