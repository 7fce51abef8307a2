"""``to_perfetto``: a trace as JSON that ui.perfetto.dev and chrome://tracing open.

Reference: the Trace Event Format, as the JSON importer of Perfetto's trace processor reads it.
"""

import json
from collections.abc import Iterator
from typing import Any

from blocks.pipeline.action import Kind
from blocks.pipeline.trace import UNMEASURED, Trace, TraceEvent
from blocks.pipeline.view.palette import NAMES

_NAMES = {
    **NAMES,
    Kind.SEND_FORWARD: "send",
    Kind.RECEIVE_FORWARD: "wait for input",
    Kind.SEND_BACKWARD: "send gradient",
    Kind.RECEIVE_BACKWARD: "wait for gradient",
}


def to_perfetto(trace: Trace) -> str:
    """A process a rank, with a thread that computes and one that sends and waits.

    Arrows go from the action that made a tensor to the one on another rank that takes it; a
    counter a rank shows the live bytes. Digests, CPU times and tokens are arguments of the slices;
    the facts of the run stand beside the events.
    """
    zero = min((event.start_ns for event in trace.events), default=0)
    events: list[dict[str, Any]] = []
    for rank, own in enumerate(trace.by_rank):
        events += _names(trace, rank)
        events += _slices(trace, own, zero)
    events += _flows(trace, zero)
    other = {"schedule": trace.schedule.name, **trace.meta}
    return json.dumps(
        {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other},
        separators=(",", ":"),
    )


def _process(rank: int) -> int:
    return rank + 1  # process and thread 0 stand for the idle thread of the kernel


def _thread(trace: Trace, rank: int, *, computes: bool) -> int:
    """Threads have numbers of their own, whatever their process."""
    return _process(rank) if computes else trace.schedule.num_ranks + _process(rank)


def _us(time_ns: int) -> float:
    """Microseconds that are read back as exactly ``time_ns``.

    The importer multiplies by 1000 and cuts off what is behind the point; a quarter of a nanosecond
    keeps a rounded product from falling below. Were a slice to end a nanosecond inside the next
    one, it would be dropped.
    """
    return (time_ns + 0.25) / 1000


def _names(trace: Trace, rank: int) -> Iterator[dict[str, Any]]:
    pid = _process(rank)
    stages = [stage for stage, where in enumerate(trace.schedule.placement) if where == rank]
    said = "stage " if len(stages) == 1 else "stages "
    name = f"rank {rank} ({said}{', '.join(map(str, stages))})"
    yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
    yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": rank}}
    for computes, what in ((True, "computes"), (False, "sends and waits")):
        tid = _thread(trace, rank, computes=computes)
        for key, value in (("name", what), ("sort_index", int(not computes))):
            args = {key: value}
            yield {"ph": "M", "name": f"thread_{key}", "pid": pid, "tid": tid, "args": args}


def _slices(trace: Trace, events: tuple[TraceEvent, ...], zero: int) -> Iterator[dict[str, Any]]:
    for event in events:
        action, pid = event.action, _process(event.rank)
        computes = action.kind.computes
        start, stop = trace.tokens(action)
        args: dict[str, Any] = {
            "action": repr(action),
            "stage": action.stage,
            "sequence": action.sequence,
            "slice": action.slice,
            "tokens": f"[{start}, {stop})",
        }
        if event.cpu_ns != UNMEASURED:
            args["cpu_us"] = event.cpu_ns / 1000
        if event.digest:
            args["digest"] = event.digest
        yield {
            "ph": "X",
            "name": f"{action.kind.value} {action.sequence},{action.slice}",
            "cat": _NAMES[action.kind],
            "pid": pid,
            "tid": _thread(trace, event.rank, computes=computes),
            "ts": _us(event.start_ns - zero),
            "dur": _us(event.duration_ns),
            "args": args,
        }
        if event.live_bytes != UNMEASURED:
            yield {
                "ph": "C",
                "name": "live",
                "pid": pid,
                "tid": _thread(trace, event.rank, computes=True),
                "ts": _us(event.end_ns - zero),
                "args": {"bytes": event.live_bytes},
            }


def _flows(trace: Trace, zero: int) -> Iterator[dict[str, Any]]:
    """An arrow for every need of an action that another rank met.

    Both ends bind to the slice that is open on their thread at their time, so they lie inside it;
    what takes no time cannot be bound to.
    """
    done = {e.action: e for e in trace.events if e.action.kind.computes}
    number = 0
    for taker in done.values():
        if taker.action.kind not in (Kind.FORWARD, Kind.BACKWARD, Kind.FULL_BACKWARD):
            continue
        for need in trace.schedule.needs(taker.action):
            maker = done.get(need) or done.get(need.on(Kind.FULL_BACKWARD))
            if maker is None or maker.rank == taker.rank:
                continue
            if maker.duration_ns < 2 or taker.duration_ns < 2:
                continue
            number += 1
            name = "input" if taker.action.kind is Kind.FORWARD else "gradient"
            base = {"name": name, "cat": "transfer", "id": number}
            yield {"ph": "s", **base, **_inside(trace, maker, zero)}
            yield {"ph": "f", "bp": "e", **base, **_inside(trace, taker, zero)}


def _inside(trace: Trace, event: TraceEvent, zero: int) -> dict[str, Any]:
    middle = (event.start_ns + event.end_ns) // 2
    tid = _thread(trace, event.rank, computes=True)
    return {"pid": _process(event.rank), "tid": tid, "ts": _us(middle - zero)}
