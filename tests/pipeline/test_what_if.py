"""What-if answers equal a simulation of the changed step wherever that one is known."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.pipeline import Action, CostSurface, Kind, Schedule, SliceTime, simulate
from blocks.pipeline.schedules import SCHEDULES
from blocks.pipeline.what_if import Durations, what_if
from tests.pipeline.test_replay import BASE, slanted
from tests.pipeline.traces import ran

NAMES = ("gpipe", "one_f_one_b", "seq1f1b", "terapipe", "token_zero_bubble", "zb_h1", "zb_h2")


def made(name: str, num_ranks: int, num_slices: tuple[int, ...]) -> Schedule:
    return SCHEDULES[name](num_ranks, num_slices, num_chunks=1)


@given(st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(2, 4), st.integers(1, 3))
def test_another_schedule_of_the_same_slices(
    first: str, second: str, num_ranks: int, num_slices: int
) -> None:
    counts = (num_slices,) * num_ranks
    trace = ran(made(first, num_ranks, counts), slanted, transfer_s=1e-4)
    found = what_if(trace, made(second, num_ranks, counts), transfer=2e-4)
    assert found.is_measured
    split = Durations(trace)
    direct = simulate(made(second, num_ranks, counts), split, transfer=lambda _: 2e-4)
    assert found.timeline.makespan == pytest.approx(direct.makespan)
    whole = sum(float(found.timeline.busy(rank)) for rank in range(num_ranks))
    kinds = (Kind.FORWARD, Kind.FULL_BACKWARD)
    again = sum(
        slanted(Action(kind, stage, 0, sequence, piece))
        for kind in kinds
        for stage in range(num_ranks)
        for sequence in range(num_ranks)
        for piece in range(num_slices)
    )
    assert whole == pytest.approx(again, rel=1e-6), "no schedule changes the work"


def test_nothing_changed_is_the_replay() -> None:
    trace = ran(made("seq1f1b", 3, (4, 4)), slanted, transfer_s=1e-4, noise=0.3)
    found = what_if(trace)
    assert found.speed_up == pytest.approx(1)
    assert found.replayed_s == pytest.approx(trace.makespan_ns * 1e-9, rel=1e-6)


def test_faster_stages_and_links() -> None:
    trace = ran(made("seq1f1b", 3, (4, 4)), slanted, transfer_s=1e-3)

    def halved(action: Action) -> float:
        return slanted(action) / (2 if action.stage == 2 else 1)

    found = what_if(trace, faster={2: 2})
    direct = simulate(trace.schedule, halved, transfer=lambda _: 1e-3)
    assert found.timeline.makespan == pytest.approx(direct.makespan, rel=1e-6)
    assert found.speed_up > 1
    one_link = what_if(trace, transfer=lambda receive: 0.0 if receive.stage == 1 else 1e-3)
    assert what_if(trace, transfer=0).speed_up > one_link.speed_up > 1


@given(st.integers(1, 5), st.integers(0, 2**16))
def test_a_whole_backward_is_split_without_losing_time(num_slices: int, seed: int) -> None:
    trace = ran(made("seq1f1b", 2, (num_slices,)), slanted, noise=0.5, seed=seed)
    seconds = Durations(trace)
    for piece in range(num_slices):
        whole = Action(Kind.FULL_BACKWARD, 0, 0, 0, piece)
        parts = [seconds(whole.on(kind)) for kind in (Kind.BACKWARD, Kind.WEIGHT)]
        assert sum(parts) == pytest.approx(seconds(whole))
        assert parts[0] >= parts[1] > 0
    forward = Action(Kind.FORWARD, 0, 0, 0, 0)
    assert seconds(forward.on(Kind.RECOMPUTE)) == seconds(forward)
    with pytest.raises(ValueError, match=r"F0.9,9.: expected its time in the trace, got none"):
        seconds(forward._replace(sequence=9, slice=9))


def test_halves_add_up_to_a_whole_backward() -> None:
    trace = ran(made("zb_h1", 2, (1, 1)), slanted)
    whole = Durations(trace)(Action(Kind.FULL_BACKWARD, 0, 0, 0, 0))
    assert whole == pytest.approx((BASE[Kind.BACKWARD] + BASE[Kind.WEIGHT]) * 1e-3, rel=1e-6)


COST = CostSurface(
    SliceTime(fixed=1e-3, per_token=1e-4, per_pair=1e-6),
    SliceTime(fixed=1e-3, per_token=1e-4, per_pair=2e-6),
    SliceTime(fixed=1e-3, per_token=1e-4),
)


def by_cost(bounds: list[tuple[int, ...]], scale: float):
    def seconds(action: Action) -> float:
        start, stop = bounds[action.sequence][action.slice : action.slice + 2]
        return float(COST.seconds(action.kind, stop - start, start)) * scale

    return seconds


def test_other_slices_come_from_a_fitted_surface() -> None:
    cuts = [(0, 40, 96, 128, 256), (0, 16, 72, 200, 256)]
    trace = ran(made("zb_h1", 2, (4, 4)), by_cost(cuts, 1))
    trace = dataclasses.replace(trace, bounds=tuple(cuts))
    finer = [tuple(range(0, 257, 32))] * 2
    found = what_if(trace, made("seq1f1b", 2, (8, 8)), bounds=finer)
    assert not found.is_measured
    direct = simulate(made("seq1f1b", 2, (8, 8)), by_cost(finer, 1))
    assert found.timeline.makespan == pytest.approx(direct.makespan, rel=1e-3)


def test_more_ranks_share_the_same_work() -> None:
    cuts = [(0, 40, 96, 128, 256), (0, 16, 72, 200, 256)]
    trace = ran(made("zb_h1", 2, (4, 4)), by_cost(cuts, 1))
    trace = dataclasses.replace(trace, bounds=tuple(cuts))
    found = what_if(trace, made("zb_h1", 4, (4, 4)))
    assert not found.is_measured
    direct = simulate(made("zb_h1", 4, (4, 4)), by_cost(cuts, 0.5))
    assert found.timeline.makespan == pytest.approx(direct.makespan, rel=1e-3)


def test_questions_that_do_not_fit() -> None:
    trace = ran(made("seq1f1b", 2, (2, 2)), slanted)
    with pytest.raises(ValueError, match=r"bounds: expected slices \(3, 3\), got \(2, 2\)"):
        what_if(trace, made("seq1f1b", 2, (3, 3)))
    with pytest.raises(ValueError, match="faster: expected stages below 2, got 2"):
        what_if(trace, faster={2: 2.0})
    with pytest.raises(ValueError, match=r"faster\[0\]: expected a positive number"):
        what_if(trace, faster={0: 0.0})
    with pytest.raises(ValueError, match=r"lengths of slices: expected \[16\], as measured"):
        what_if(trace, made("seq1f1b", 2, (3, 3)), bounds=[(0, 8, 16, 32)] * 2)
    few = dataclasses.replace(trace, bounds=((0, 8, 32),) * 2)
    with pytest.raises(ValueError, match="at least 3 different slices"):
        what_if(few, made("seq1f1b", 2, (3, 3)), bounds=[(0, 8, 16, 32)] * 2)
