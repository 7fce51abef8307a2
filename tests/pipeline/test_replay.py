"""Replay of traces that obey the simulator's rules is exact; of others, it says what is wrong."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import UNMEASURED, Action, CostSurface, Kind, SliceTime, Trace
from blocks.pipeline.measured import durations_s, measured_timeline, transfer_s, wall_over_cpu
from blocks.pipeline.replay import compute_only, replay
from blocks.pipeline.schedules import SCHEDULES
from tests.pipeline.traces import ran

COST = CostSurface(
    SliceTime(fixed=1e-3, per_token=1e-4, per_pair=1e-6),
    SliceTime(fixed=1e-3, per_token=1e-4, per_pair=2e-6),
    SliceTime(fixed=1e-3, per_token=1e-4),
)
BASE = {Kind.FORWARD: 1.0, Kind.BACKWARD: 1.2, Kind.WEIGHT: 0.9, Kind.FULL_BACKWARD: 2.1}


def slanted(action: Action) -> float:
    """Seconds that differ by kind, stage and slice."""
    return BASE[action.kind] * 1e-3 * (1 + 0.1 * action.slice + 0.05 * action.stage)


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(2, 4),
    st.integers(1, 3),
    st.sampled_from([0.0, 3e-4, 5e-3]),
    st.integers(0, 50_000),
    st.integers(0, 2**16),
)
def test_a_run_by_the_rules_is_replayed_exactly(
    name: str, num_ranks: int, num_slices: int, lag_s: float, overhead_ns: int, seed: int
) -> None:
    """Whatever the actions take, whatever the executor does between them, and however long
    tensors travel: given the waits, replay finds the measured makespan."""
    chunks = 2 if name == "zb_v" else 1
    schedule = SCHEDULES[name](num_ranks, (num_slices,) * num_ranks, num_chunks=chunks)
    trace = ran(schedule, slanted, transfer_s=lag_s, noise=0.5, overhead_ns=overhead_ns, seed=seed)
    found = replay(trace)
    assert found.transfer_s == pytest.approx(lag_s, abs=1e-9)
    assert found.replay_error == pytest.approx(0, abs=1e-6 + overhead_ns * 1e-9 / 5e-3)
    # the first action's overhead is before the trace begins, so only it can be missing
    assert abs(found.replayed.makespan - found.measured.makespan) <= 2.1 * overhead_ns * 1e-9 + 1e-8


def test_without_receives_the_time_between_actions_is_lost() -> None:
    schedule = SCHEDULES["seq1f1b"](2, (4,), num_chunks=1)
    trace = ran(schedule, slanted, overhead_ns=200_000)
    computed = tuple(event for event in trace.events if event.action.kind.computes)
    bare = dataclasses.replace(trace, events=computed)
    assert abs(replay(trace).replay_error) < 0.02
    assert replay(bare).replay_error < -0.05
    assert durations_s(bare)[computed[0].action] == pytest.approx(computed[0].duration_ns * 1e-9)


def test_the_cpu_clock_leaves_out_what_held_the_thread_up() -> None:
    schedule = SCHEDULES["seq1f1b"](2, (4,), num_chunks=1)
    trace = ran(schedule, slanted)
    half = tuple(event._replace(cpu_ns=event.duration_ns // 2) for event in trace.events)
    trace = dataclasses.replace(trace, events=half)
    assert wall_over_cpu(trace) == (pytest.approx(2), pytest.approx(2))
    found = replay(trace, clock="cpu")
    assert found.replay_error == pytest.approx(-0.5, abs=1e-3)
    unknown = tuple(event._replace(cpu_ns=UNMEASURED) for event in trace.events)
    with pytest.raises(ValueError, match="CPU time of F0"):
        replay(dataclasses.replace(trace, events=unknown), clock="cpu")
    assert wall_over_cpu(dataclasses.replace(trace, events=unknown)) == (0.0, 0.0)


def test_prediction_is_reported_beside_replay() -> None:
    schedule = SCHEDULES["seq1f1b"](3, (4, 4), num_chunks=1)
    bounds = tuple(range(0, 33, 8))

    def seconds(action: Action) -> float:
        start, stop = bounds[action.slice], bounds[action.slice + 1]
        return COST.seconds(action.kind, stop - start, start)

    trace = ran(schedule, seconds)
    found = replay(trace, COST)
    assert found.prediction_error == pytest.approx(0, abs=1e-5)
    twice = replay(trace, COST.scaled(2))
    assert twice.prediction_error == pytest.approx(1, abs=1e-5)
    assert twice.replay_error == pytest.approx(0, abs=1e-5)
    assert "predicted" in str(twice)
    assert "predicted" not in str(replay(trace))
    assert replay(trace).prediction_error is None


def test_the_transfer_is_seen_where_a_rank_waited_already() -> None:
    schedule = SCHEDULES["gpipe"](2, (1, 1, 1), num_chunks=1)
    trace = ran(schedule, slanted, transfer_s=2e-3)
    assert transfer_s(trace) == pytest.approx(2e-3)
    assert transfer_s(dataclasses.replace(trace, events=())) == 0.0
    computed = tuple(event for event in trace.events if event.action.kind.computes)
    assert transfer_s(dataclasses.replace(trace, events=computed)) == 0.0
    waits = {e.duration_ns for e in trace.events if not e.action.kind.computes}
    assert len(waits) > 1, "how long a rank waited says nothing"


def drop(trace: Trace, at: int) -> Trace:
    return dataclasses.replace(trace, events=trace.events[:at] + trace.events[at + 1 :])


def test_actions_must_be_there_once() -> None:
    trace = ran(SCHEDULES["gpipe"](1, (2,), num_chunks=1), slanted)
    with pytest.raises(ValueError, match=r"F0.0,1. on rank 0: expected in the trace, got none"):
        replay(drop(trace, 1))
    last = trace.events[-1]
    again = last._replace(start_ns=last.end_ns, end_ns=last.end_ns + 1)
    with pytest.raises(ValueError, match=r"BW0.0,0. on rank 0: expected one in a step"):
        replay(dataclasses.replace(trace, events=(*trace.events, again)))


def test_the_measured_timeline_begins_with_the_first_action() -> None:
    trace = ran(SCHEDULES["gpipe"](2, (2,), num_chunks=1), slanted)
    late = tuple(
        event._replace(start_ns=event.start_ns + 777, end_ns=event.end_ns + 777)
        for event in trace.events
    )
    ours = measured_timeline(trace)
    theirs = measured_timeline(dataclasses.replace(trace, events=late))
    assert ours == theirs
    assert min(span.start for spans in ours.spans for span in spans) == 0


def test_compute_only_drops_what_moves_tensors() -> None:
    schedule = SCHEDULES["gpipe"](2, (2,), num_chunks=1)
    programs = tuple(
        (*program, Action(Kind.SEND_FORWARD, 0, 0, 0, 0, 1)) if rank == 0 else program
        for rank, program in enumerate(schedule.programs)
    )
    assert compute_only(dataclasses.replace(schedule, programs=programs)) == schedule
