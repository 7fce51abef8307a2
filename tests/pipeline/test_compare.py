"""What a comparison of two traces finds."""

import dataclasses

import pytest

from blocks.pipeline import Kind, Trace
from blocks.pipeline.compare import compare
from blocks.pipeline.schedules import SCHEDULES
from tests.pipeline.test_replay import slanted
from tests.pipeline.traces import ran


def hashed(trace: Trace) -> Trace:
    """Every action's digest says what it computed."""
    events = tuple(e._replace(digest=repr(e.action)) for e in trace.events)
    losses = tuple(tuple(0.5 + piece for piece in range(n)) for n in trace.schedule.num_slices)
    return dataclasses.replace(trace, events=events, losses=losses)


def step(name: str, scale: float = 1.0) -> Trace:
    schedule = SCHEDULES[name](2, (2, 2), num_chunks=1)
    return hashed(ran(schedule, lambda action: slanted(action) * scale))


def test_a_trace_equals_itself() -> None:
    found = compare(step("seq1f1b"), step("seq1f1b"))
    assert found.makespan_ratio == 1
    assert {times.kind: times.ratio for times in found.kinds}[Kind.FORWARD] == 1
    assert (found.first_digest, found.first_loss) == (None, None)
    assert found.num_losses == 4
    assert "digests: all" in str(found)


def test_times_are_compared_by_kind() -> None:
    found = compare(step("seq1f1b"), step("seq1f1b", 3.0))
    ratios = {times.kind: times.ratio for times in found.kinds}
    assert ratios[Kind.FORWARD] == pytest.approx(3, rel=1e-3)
    assert ratios[Kind.FULL_BACKWARD] == pytest.approx(3, rel=1e-3)
    assert found.makespan_ratio == pytest.approx(3, rel=1e-3)
    split = compare(step("seq1f1b"), step("zb_h1"))
    counts = {times.kind: times.counts for times in split.kinds}
    assert counts[Kind.WEIGHT] == (0, 8)
    assert counts[Kind.FULL_BACKWARD] == (8, 0)


def test_the_first_digest_that_differs_is_named() -> None:
    first, second = step("seq1f1b"), step("gpipe")
    computed = sorted((e for e in first.events if e.action.kind.computes), key=lambda e: e.end_ns)
    wrong = {computed[3].action, computed[6].action}
    events = tuple(e._replace(digest="other") if e.action in wrong else e for e in second.events)
    found = compare(first, dataclasses.replace(second, events=events))
    assert found.first_digest == computed[3].action
    assert "digests: differ first at" in str(found)
    bare = tuple(e._replace(digest="") for e in second.events)
    assert compare(first, dataclasses.replace(second, events=bare)).num_digests == 0


def test_losses_are_compared_to_the_bit() -> None:
    first = step("seq1f1b")
    nan = dataclasses.replace(first, losses=((0.5, float("nan")), (0.5, 1.5)))
    assert compare(nan, nan).first_loss is None
    other = dataclasses.replace(first, losses=((0.5, 1.5), (0.5, 1.5000000000000002)))
    assert compare(first, other).first_loss == (1, 1, 1.5, 1.5000000000000002)
    assert "losses:  differ first at slice 1 of sequence 1" in str(compare(first, other))
    assert compare(first, dataclasses.replace(first, losses=())).num_losses == 0
    longer = ran(SCHEDULES["seq1f1b"](2, (3, 3), num_chunks=1), slanted)
    with pytest.raises(ValueError, match="losses: expected of slices"):
        compare(first, hashed(longer))
