"""One row of the matrix, what measuring it gives, and how the two are compared."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benches import machine
from benches.peers import ready
from blocks._impl import Impl
from blocks._work import Work

LOWER_IS_BETTER = ("us", "ms", "x time")
"""Units in which less is better; in all others more is."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where rows are measured.

    device: the accelerator, or the CPU with ``tiny``.
    tiny: small shapes, one round: shows that the code runs, measures nothing.
    """

    device: torch.device
    tiny: bool = False

    def size(self, full: int, small: int) -> int:
        """``full``, or ``small`` when tiny."""
        return min(full, small) if self.tiny else full

    @property
    def impl(self) -> Impl | None:
        """The implementation to ask for: the kernel, in the interpreter when tiny."""
        return "triton" if self.tiny else None


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a row's run found.

    value: in the row's unit.
    times: seconds of ours and of every peer that ran.
    missing: peers that did not, and why.
    info: FLOPs, bytes, rates and peaks of the same run.
    """

    value: float
    times: Mapping[str, machine.Times] = dataclasses.field(default_factory=dict)
    missing: Mapping[str, str] = dataclasses.field(default_factory=dict)
    info: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ratios(self) -> dict[str, float]:
        """Speed of ours over each peer's; above 1 ours is faster."""
        ours = self.times["ours"].best.median_s if self.times else 0.0
        return {n: t.best.median_s / ours for n, t in self.times.items() if n != "ours"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the matrix.

    id: family and number, and the shape where a number has several (``P1-4k``).
    what: kernel and shape.
    unit: of the figure: ``% copy`` (bytes a second over the measured copy), ``TFLOP/s``, ``us``,
        ``ms``, ``x time`` (over another time of ours), ``x speed`` (the other way round).
    stage1, stage2: what the first release must reach, and what it aims at.
    measure: runs it.
    peers: whose kernels stand beside it, with the least ratio ours must have; a name stands for
        every peer that it begins, and the fastest of those counts.
    """

    id: str
    what: str
    unit: str
    stage1: float
    stage2: float
    measure: Callable[[Setting], Measurement]
    peers: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def reaches(self, value: float, target: float) -> bool:
        """Whether ``value`` is at least as good as ``target``."""
        return value <= target if self.unit in LOWER_IS_BETTER else value >= target

    def verdict(self, value: float) -> str:
        """``stage 2``, ``stage 1`` or ``short``."""
        if self.reaches(value, self.stage2):
            return "stage 2"
        return "stage 1" if self.reaches(value, self.stage1) else "short"


class NotBuilt(Exception):
    """An operation the row needs is not in this version of the library."""


def operation(name: str) -> Any:
    """A public operation by ``block.name``, so that a row can stand before its kernel does."""
    block, _, attribute = name.partition(".")
    found = getattr(importlib.import_module(f"blocks.{block}"), attribute, None)
    if found is None:
        raise NotBuilt(f"blocks.{name} is not built yet")
    return found


def raced(
    setting: Setting,
    name: str,
    case: Any,
    ours: machine.Call,
    check: Callable[[Any], None],
    work: Work,
    unit: str,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> Measurement:
    """Check ours and every peer of ``name`` on a case, time them in turn, give ours in ``unit``."""
    check(ours())
    calls, missing = ready(name, case, setting.device, check)
    times = timed(setting, {"ours": ours, **calls})
    seconds = times["ours"].best.median_s
    info = {
        **machine.rates(work, seconds, setting.device, dtype),
        "dtype": str(dtype).split(".")[-1],
    }
    return Measurement(in_unit(unit, seconds, work, setting.device), times, missing, info)


def timed(setting: Setting, calls: Mapping[str, machine.Call]) -> dict[str, machine.Times]:
    """Interleaved times with the budget of a row; when tiny, one call each."""
    if setting.tiny:
        once = {n: machine.seconds(call, setting.device, cold=False) for n, call in calls.items()}
        return {name: machine.Times(machine.Timing.of([s])) for name, s in once.items()}
    return machine.interleaved(calls, setting.device, budget_s=0.4 * len(calls), max_rounds=60)


def in_unit(unit: str, seconds: float, work: Work, device: torch.device) -> float:
    """Seconds as the figure of a row."""
    if unit == "% copy":
        return 100 * work.bytes / seconds / machine.peak_bandwidth(device)
    if unit == "TFLOP/s":
        return work.flops / seconds / 1e12
    return seconds * {"us": 1e6, "ms": 1e3}[unit]
