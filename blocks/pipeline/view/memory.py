"""``Memory``: what a picture shows of what ranks hold."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from blocks._checks import check
from blocks.pipeline.action import Kind
from blocks.pipeline.timeline import Number, Timeline
from blocks.pipeline.trace import UNMEASURED, Trace


class Curve(NamedTuple):
    """Memory of a rank: from each time on, so much."""

    times: tuple[float, ...]
    amounts: tuple[float, ...]

    @property
    def peak(self) -> float:
        return max(self.amounts, default=0.0)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of all ranks over time.

    unit: ``bytes``, or ``tokens`` or ``slices`` whose activations are kept.
    planned, measured: a curve a rank; empty where there is none.
    """

    unit: str
    planned: tuple[Curve, ...]
    measured: tuple[Curve, ...]

    @property
    def peak(self) -> float:
        return max((curve.peak for curve in (*self.planned, *self.measured)), default=0.0)


def planned_memory(
    plan: Timeline, trace: Trace | None, planned_bytes: Sequence[Sequence[Number]] | None
) -> Memory:
    """Bytes of a plan where they are given, else the tokens or slices it keeps."""
    if planned_bytes is not None:
        return Memory("bytes", tuple(map(_curve_of_bytes, plan.spans, planned_bytes)), ())
    same = trace is not None and trace.schedule.num_slices == plan.schedule.num_slices
    curves = tuple(_kept(spans, trace if same else None) for spans in plan.spans)
    return Memory("tokens" if same else "slices", curves, ())


def _curve_of_bytes(spans: Sequence, amounts: Sequence[Number]) -> Curve:
    check(len(spans) == len(amounts), "planned_bytes", f"{len(spans)} of a rank", len(amounts))
    return Curve(tuple(float(span.end) for span in spans), tuple(map(float, amounts)))


def _kept(spans: Sequence, trace: Trace | None) -> Curve:
    """Slices, or their tokens, whose activations a rank keeps: from the start of the forward to
    the end of the backward that needs them last."""
    splits = {span.action.kind for span in spans}
    frees = {Kind.FULL_BACKWARD, Kind.WEIGHT if Kind.WEIGHT in splits else Kind.BACKWARD}
    changes = []
    for action, start, end in spans:
        amount = 1.0
        if trace is not None:
            first, stop = trace.tokens(action)
            amount = float(stop - first)
        if action.kind is Kind.FORWARD:
            changes.append((float(start), amount))
        elif action.kind in frees:
            changes.append((float(end), -amount))
    changes.sort()
    held, times, amounts = 0.0, [], []
    for time, amount in changes:
        held += amount
        times.append(time)
        amounts.append(held)
    return Curve(tuple(times), tuple(amounts))


def measured_memory(trace: Trace) -> Memory:
    """Bytes that were counted."""
    zero = min((e.start_ns for e in trace.events if e.action.kind.computes), default=0)
    curves = []
    for events in trace.by_rank:
        known = [e for e in events if e.live_bytes != UNMEASURED and e.end_ns >= zero]
        times = tuple((e.end_ns - zero) * 1e-9 for e in known)
        curves.append(Curve(times, tuple(float(e.live_bytes) for e in known)))
    return Memory("bytes", (), tuple(curves))
