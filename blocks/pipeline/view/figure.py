"""``Figure``: what a picture shows, before anybody decides where."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from blocks._checks import check
from blocks.pipeline.action import Action
from blocks.pipeline.measured import RECEIVES, measured_timeline
from blocks.pipeline.timeline import Number, Timeline
from blocks.pipeline.trace import UNMEASURED, Fact, Trace
from blocks.pipeline.view.memory import Memory, measured_memory, planned_memory
from blocks.pipeline.view.scale import time_text

PLANNED = "planned (simulated)"
MEASURED = "measured"


class Bar(NamedTuple):
    """A compute action on a lane; times in the figure's unit."""

    action: Action
    start: float
    end: float
    cpu: float | None = None
    live_bytes: int | None = None


class Stop(NamedTuple):
    """A stretch of the critical path."""

    rank: int
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Panel:
    """All ranks over time, once.

    title: what it is. note: makespan and bubble.
    lanes: for every rank its compute actions in order.
    waits: for every rank when it stood still for a receive, where that was measured.
    busy: for every rank the share of the makespan in which it computes.
    path: the critical path.
    """

    title: str
    note: str
    lanes: tuple[tuple[Bar, ...], ...]
    waits: tuple[tuple[tuple[float, float], ...], ...]
    busy: tuple[float, ...]
    path: tuple[Stop, ...]
    span: float


@dataclasses.dataclass(frozen=True)
class Figure:
    """A plan, a trace, or a plan above a trace, on one axis of time.

    unit: of time, ``s`` or empty for a plan in units of its own.
    facts: what the header says beside the title.
    row: what a row is, before its number.
    """

    title: str
    unit: str
    facts: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]
    memory: tuple[Memory, ...]
    row: str = "rank"

    @property
    def span(self) -> float:
        return max((panel.span for panel in self.panels), default=0.0)

    @property
    def num_ranks(self) -> int:
        return len(self.panels[0].lanes)


def figure(
    plan: Timeline | None = None,
    trace: Trace | None = None,
    *,
    planned_bytes: Sequence[Sequence[Number]] | None = None,
    unit: str | None = None,
    facts: Mapping[str, Fact] | None = None,
    title: str | None = None,
    plan_title: str = PLANNED,
    row: str = "rank",
) -> Figure:
    """What there is to show of a plan, a trace, or both.

    Args:
        plan: a simulated timeline; in seconds where there is a trace.
        trace: a measured step, of all ranks.
        planned_bytes: for every rank of the plan, the bytes it holds after each action of its
            program, for the curve of memory; without, the plan shows whose activations are kept.
        unit: of the plan's time; seconds with a trace, else none.
        facts: more for the header than the trace's own.
        title: the schedule's name when None.
        plan_title: what the plan is.
        row: what a row is called, before its number: ``stage`` where each rank has one.

    Raises:
        ValueError: neither, or both of different numbers of ranks.
    """
    check(plan is not None or trace is not None, "figure", "a plan, a trace, or both", "neither")
    panels, memory = [], []
    shown = {**(dict(trace.meta) if trace else {}), **(facts or {})}
    unit = ("s" if trace else "") if unit is None else unit
    if plan is not None:
        panels.append(panel_of(plan, plan_title, unit))
        memory.append(planned_memory(plan, trace, planned_bytes))
    if trace is not None:
        panels.append(_measured_panel(trace))
        if all(e.live_bytes != UNMEASURED for e in trace.events if e.action.kind.computes):
            memory.append(measured_memory(trace))
        elif plan is None:
            memory.append(planned_memory(measured_timeline(trace), trace, None))
    counts = {len(panel.lanes) for panel in panels}
    check(len(counts) == 1, "figure", "a plan and a trace of the same ranks", f"{counts} ranks")
    if len(memory) == 2 and memory[0].unit == memory[1].unit:
        memory = [Memory(memory[0].unit, memory[0].planned, memory[1].measured)]
    schedule = plan.schedule if plan is not None else trace.schedule if trace else None
    assert schedule is not None
    said = tuple((name, str(fact)) for name, fact in shown.items())
    return Figure(
        title or schedule.name,
        unit,
        (*_shape(schedule.num_slices), *said),
        tuple(panels),
        tuple(memory),
        row,
    )


def _shape(num_slices: tuple[int, ...]) -> tuple[tuple[str, str], ...]:
    counts = sorted(set(num_slices))
    slices = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return ("sequences", str(len(num_slices))), ("slices", slices)


def panel_of(timeline: Timeline, title: str, unit: str) -> Panel:
    """A timeline as a panel."""
    lanes = tuple(
        tuple(
            Bar(span.action, float(span.start), float(span.end))
            for span in spans
            if span.action.kind.computes
        )
        for spans in timeline.spans
    )
    return _panel(timeline, title, lanes, tuple(() for _ in lanes), unit)


def _measured_panel(trace: Trace) -> Panel:
    zero = min((e.start_ns for e in trace.events if e.action.kind.computes), default=0)
    lanes, waits = [], []
    for events in trace.by_rank:
        bars = [
            Bar(
                e.action,
                (e.start_ns - zero) * 1e-9,
                (e.end_ns - zero) * 1e-9,
                None if e.cpu_ns == UNMEASURED else e.cpu_ns * 1e-9,
                None if e.live_bytes == UNMEASURED else e.live_bytes,
            )
            for e in events
            if e.action.kind.computes
        ]
        lanes.append(tuple(bars))
        waits.append(
            tuple(
                (max(e.start_ns - zero, 0) * 1e-9, (e.end_ns - zero) * 1e-9)
                for e in events
                if e.action.kind in RECEIVES and e.end_ns > zero
            )
        )
    return _panel(measured_timeline(trace), MEASURED, tuple(lanes), tuple(waits), "s")


def _panel(
    timeline: Timeline,
    title: str,
    lanes: tuple[tuple[Bar, ...], ...],
    waits: tuple[tuple[tuple[float, float], ...], ...],
    unit: str,
) -> Panel:
    makespan = float(timeline.makespan)
    ranks = range(len(lanes))
    busy = tuple(float(timeline.busy(rank)) / makespan if makespan else 0.0 for rank in ranks)
    note = f"makespan {time_text(makespan, unit)}, bubble {float(timeline.bubble):.1%}"
    placement = timeline.schedule.placement
    path = tuple(
        Stop(placement[span.action.stage], float(span.start), float(span.end))
        for span in timeline.critical_path()
    )
    return Panel(title, note, lanes, waits, busy, path, makespan)
