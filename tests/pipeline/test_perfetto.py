"""Perfetto JSON, read back by the rules of Perfetto's own importer."""

import itertools
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.pipeline import Kind, Trace
from blocks.pipeline.schedules import SCHEDULES
from blocks.pipeline.view import to_perfetto
from tests.pipeline.test_replay import slanted
from tests.pipeline.traces import Maker, makers, ran


def imported_ns(value: float) -> int:
    """A time as the importer reads it: times 1000, cut off behind the point."""
    return int(value * 1000.0)


def slices_by_thread(events: list[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] == "X":
            found.setdefault((event["pid"], event["tid"]), []).append(event)
    for some in found.values():
        some.sort(key=lambda event: event["ts"])
    return found


def open_slice(slices: list[dict[str, Any]], at_ns: int) -> dict[str, Any] | None:
    """The slice of a thread that is open at a time."""
    for event in slices:
        start = imported_ns(event["ts"])
        if start <= at_ns < start + imported_ns(event["dur"]):
            return event
    return None


@settings(max_examples=20)
@given(makers())
def test_no_slice_is_dropped(make: Maker) -> None:
    """Times come back to the nanosecond, none is negative, and no slice reaches into the next."""
    trace = make()
    zero = min(event.start_ns for event in trace.events)
    read = json.loads(to_perfetto(trace))["traceEvents"]
    threads = slices_by_thread(read)
    times = sorted(
        (imported_ns(e["ts"]), imported_ns(e["dur"]), e["args"]["action"])
        for some in threads.values()
        for e in some
    )
    assert times == sorted((e.start_ns - zero, e.duration_ns, repr(e.action)) for e in trace.events)
    for some in threads.values():
        for first, second in itertools.pairwise(some):
            end = imported_ns(first["ts"]) + imported_ns(first["dur"])
            assert end <= imported_ns(second["ts"])
    assert all(event["ts"] >= 0 for event in read if event["ph"] != "M")


def example() -> Trace:
    schedule = SCHEDULES["token_zero_bubble"](3, (2, 2), num_chunks=1)
    return ran(schedule, slanted, transfer_s=1e-4, noise=0.3)


def test_arrows_bind_to_the_action_that_made_and_the_one_that_took() -> None:
    trace = example()
    read = json.loads(to_perfetto(trace))["traceEvents"]
    threads = slices_by_thread(read)
    ends: dict[int, dict[str, str]] = {}
    for event in sorted((e for e in read if e["ph"] in "sf"), key=lambda event: event["ts"]):
        bound = open_slice(threads[event["pid"], event["tid"]], imported_ns(event["ts"]))
        assert bound is not None
        if event["ph"] == "f":
            assert event["bp"] == "e"
            assert "s" in ends[event["id"]], "an arrow ends after it began"
        pair = ends.setdefault(event["id"], {})
        assert event["ph"] not in pair
        pair[event["ph"]] = bound["args"]["action"]
    drawn = {(pair["s"], pair["f"]) for pair in ends.values()}
    wanted = set()
    for event in trace.events:
        if event.action.kind in (Kind.FORWARD, Kind.BACKWARD):
            for need in trace.schedule.needs(event.action):
                if trace.schedule.placement[need.stage] != event.rank:
                    wanted.add((repr(need), repr(event.action)))
    assert drawn == wanted


def test_ranks_are_processes_with_names_and_a_counter() -> None:
    trace = example()
    read = json.loads(to_perfetto(trace))
    events = read["traceEvents"]
    names = {
        event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"
    }
    assert names == {1: "rank 0 (stage 0)", 2: "rank 1 (stage 1)", 3: "rank 2 (stage 2)"}
    threads = [(e["tid"], e["pid"]) for e in events if e["name"] == "thread_name"]
    assert len({tid for tid, _ in threads}) == len(threads) == 6, "thread ids are global"
    assert all(tid > 0 for tid, _ in threads)
    counted = [e["args"]["bytes"] for e in events if e["ph"] == "C"]
    assert len(counted) == len(trace.events)
    assert all(isinstance(amount, int) for amount in counted)
    assert read["otherData"]["device"] == "made up"


@given(st.integers(0, 1 << 50))
def test_every_nanosecond_survives(time_ns: int) -> None:
    from blocks.pipeline.view.perfetto import _us

    assert imported_ns(json.loads(json.dumps(_us(time_ns)))) == time_ns
