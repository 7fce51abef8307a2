"""What a trace refuses, and how the traces of several ranks become one."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import Action, Kind, Origin, Recorder, Trace, TraceEvent, merge
from tests.pipeline.traces import Maker, chain, made_up, makers


def of_rank(trace: Trace, rank: int, origin: Origin) -> Trace:
    """What ``rank`` would have recorded of ``trace``, had its clock read zero at ``origin``."""
    late = origin.reading_ns - trace.origins[rank].reading_ns
    events = tuple(
        event._replace(start_ns=event.start_ns - late, end_ns=event.end_ns - late)
        for event in trace.by_rank[rank]
    )
    losses = trace.losses if rank == trace.schedule.num_ranks - 1 else ()
    meta = {**trace.meta, "rank": rank}
    return dataclasses.replace(
        trace, events=events, meta=meta, losses=losses, origins={rank: origin}
    )


@given(makers(), st.data())
def test_ranks_on_one_clock_merge_exactly(make: Maker, data: st.DataObject) -> None:
    """However late a rank made its recorder after the barrier, the merged times are the true ones,
    up to where zero is."""
    trace = make()
    lates = [data.draw(st.integers(0, 10**6)) for _ in trace.schedule.programs]
    lates[data.draw(st.integers(0, len(lates) - 1))] = 0
    parts = [
        of_rank(trace, rank, Origin("clock", trace.origins[rank].reading_ns + late))
        for rank, late in enumerate(lates)
    ]
    merged = merge(data.draw(st.permutations(parts)))
    assert merged.events == trace.events
    assert merged.origins == trace.origins
    assert merged.losses == trace.losses
    assert merged.meta == {**trace.meta, "rank": 0}


def test_clocks_that_differ_are_aligned_by_their_zeros() -> None:
    trace = made_up(chain(2, (2,)), 0)
    far = [of_rank(trace, rank, trace.origins[rank]) for rank in range(2)]
    far[1] = dataclasses.replace(far[1], origins={1: Origin("another", 5)})
    merged = merge(far)
    assert merged.events == trace.events
    assert merged.origins == {0: trace.origins[0], 1: Origin("another", 5)}


def test_what_does_not_merge() -> None:
    trace, other = made_up(chain(2, (2,)), 0), made_up(chain(2, (3,)), 0)
    with pytest.raises(ValueError, match="expected every rank once, got ranks"):
        merge([trace, trace])
    with pytest.raises(ValueError, match="all of schedule chain"):
        merge([trace, other])
    with pytest.raises(ValueError, match="all of step 0, got step 1 too"):
        merge([trace, dataclasses.replace(trace, meta={"step": 1})])
    with pytest.raises(ValueError, match="at least one, got none"):
        merge([])
    with pytest.raises(ValueError, match="an origin of every rank"):
        merge([dataclasses.replace(trace, origins={})])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bounds": ((0, 4),)}, "bounds: expected slices"),
        ({"bounds": ((0, 4, 4),)}, "bounds: expected whole tokens ascending from 0"),
        ({"bounds": ((1, 4, 5),)}, "bounds: expected whole tokens ascending from 0"),
        ({"losses": ((0.5,),)}, "losses: expected one a slice"),
        ({"origins": {2: Origin("", 0)}}, "rank of an origin: expected below 2"),
    ],
)
def test_what_does_not_fit_the_schedule(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(made_up(chain(2, (2,)), 0), **change)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (TraceEvent(2, Action(Kind.FORWARD, 0, 0, 0, 0), 0, 1), "rank of F0.0,0.: expected below"),
        (TraceEvent(1, Action(Kind.FORWARD, 0, 0, 0, 0), 0, 1), "a stage of that rank"),
        (TraceEvent(0, Action(Kind.FORWARD, 0, 0, 0, 2), 0, 1), "slice of F0"),
        (TraceEvent(0, Action(Kind.FORWARD, 0, 0, 0, 0), 1, 0), "an end after its start"),
        (TraceEvent(0, Action(Kind.FORWARD, 0, 0, 0, 1), 4, 6), "a start after the event before"),
    ],
)
def test_events_that_cannot_be(event: TraceEvent, said: str) -> None:
    trace = made_up(chain(2, (2,)), 0)
    first = TraceEvent(0, Action(Kind.FORWARD, 0, 0, 0, 0), 0, 5)
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(trace, events=(first, event))


def test_makespan_and_tokens() -> None:
    trace = made_up(chain(2, (2,)), 0)
    ends = [event.end_ns for event in trace.events]
    starts = [event.start_ns for event in trace.events]
    assert trace.makespan_ns == max(ends) - min(starts)
    assert dataclasses.replace(trace, events=()).makespan_ns == 0
    assert trace.tokens(Action(Kind.FORWARD, 0, 0, 0, 1)) == trace.bounds[0][1:]


def test_recorders_share_the_clock_of_the_machine() -> None:
    schedule = chain(2, (1,))
    recorders = [Recorder(rank, schedule, [(0, 8)]) for rank in range(2)]
    merged = merge([recorder.trace() for recorder in recorders])
    clocks = {origin.clock for origin in merged.origins.values()}
    assert len(clocks) == 1 or clocks == {"rank 0", "rank 1"}


def test_a_recorder_asks_what_the_rank_holds() -> None:
    schedule = chain(1, (2,))
    counts = iter([7, 9])
    recorder = Recorder(0, schedule, [(0, 4, 8)], clock=lambda: 100, live_bytes=counts.__next__)
    for start, action in zip((200, 300), schedule.programs[0], strict=False):
        recorder(TraceEvent(0, action, start, start + 50))
    trace = recorder.trace([[0.5, 0.25]])
    assert [(e.start_ns, e.end_ns, e.live_bytes) for e in trace.events] == [
        (100, 150, 7),
        (200, 250, 9),
    ]
    assert trace.losses == ((0.5, 0.25),)
    assert trace.origins == {0: Origin("rank 0", 100)}, "another clock than the machine's"
