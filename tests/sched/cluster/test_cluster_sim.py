"""The simulated cluster: small cases by hand, both loops alike, parts on their own, faults."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks import _native
from blocks.sched.cluster_sim import (
    ALPASERVE_FAST,
    DISPATCH,
    FAILED,
    FINISHED,
    REJECTED,
    UNPLACED,
    ClusterSim,
    Event,
    Outcome,
    Overheads,
    simulate,
    stage_noise,
)
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import BatchTime, Configuration, Profile, Timing, single_pass
from blocks.sched.workload import Workload
from tests.sched.cluster.cases import (
    MADE_UP,
    draw_events,
    draw_options,
    draw_placement,
    draw_profiles,
    draw_workload,
)
from tests.sched.cluster.checks import check_stages
from tests.sched.cluster.storm import storms

seeds = st.integers(0, 2**32 - 1)
ONE = Configuration(1, 1)
TWO = Configuration(1, 2)


def equal(one: Outcome, other: Outcome) -> None:
    """Every bit of two outcomes."""
    for name in ("status", "answered_s", "group", "busy_s"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), name)


def alone(stage_s: list[float], model: str = "a") -> dict[str, Profile]:
    return {model: single_pass(model, "d", {(1, len(stage_s)): stage_s}, 1)}


def on(num_groups: int, pp: int, model: str = "a") -> Placement:
    return Placement.equal_groups(num_groups * pp, Configuration(1, pp), [[model]] * num_groups)


# --- by hand -------------------------------------------------------------------------------------


def test_a_pipeline_by_hand() -> None:
    """Stages of 1 and 2 seconds: the second one is what requests wait for."""
    workload = Workload.of(["a"], [0, 0, 0, 10], slo_s=[3, 5, 6.9, 3])
    outcome = simulate(on(1, 2), alone([1.0, 2.0]), workload)
    assert outcome.answered_s.tolist() == [3, 5, 0, 13]
    assert outcome.status.tolist() == [FINISHED, FINISHED, REJECTED, FINISHED]
    assert outcome.attainment == 0.75
    assert outcome.goodput == 0.3
    assert outcome.busy_s.tolist() == [9]
    assert outcome.utilisation.tolist() == [9 / 26]
    assert outcome.mean_latency_s == pytest.approx(11 / 3)
    assert outcome.percentiles_s([0, 50, 100]) == (3, 3, 5)
    assert outcome.met_by_model.tolist() == [3]
    assert str(outcome).startswith("attainment 75.00% of 4 requests (3 finished, 1 rejected)")


def test_late_answers_where_nothing_is_refused() -> None:
    workload = Workload.of(["a"], [0, 0], slo_s=1.0)
    outcome = simulate(on(1, 1), alone([1.0]), workload, admit=False)
    assert outcome.answered_s.tolist() == [1, 2]
    assert outcome.counts["late"] == 1
    assert outcome.attainment == 0.5


def test_gaps_hold_a_stage_and_overheads_hold_the_answer() -> None:
    workload = Workload.of(["a"], [0, 0])
    overheads = Overheads(request_s=0.25, gap_s=(9.0, 0.5), per_stage=0.25)
    outcome = simulate(on(1, 2), alone([1.0, 1.0]), workload, overheads=overheads)
    assert outcome.answered_s.tolist() == [3.25, 5.25], "1.5 s a stage, and half a second between"
    with pytest.raises(ValueError, match="overheads: expected seconds and shares of 0 or more"):
        simulate(on(1, 1), alone([1.0]), workload, overheads=Overheads(gap_s=(-1.0,)))
    assert ALPASERVE_FAST.gap_of(8) == 0


def test_a_gap_makes_short_tasks_at_50_a_second_wait_three_times_longer() -> None:
    """A stage of 15 ms looks half idle, and with 4 ms between tasks it is nearly always taken."""
    from blocks.sched.workload import poisson_workload

    workload = poisson_workload([50.0], 400.0, np.random.default_rng(0), ["a"])
    without = simulate(on(1, 1), alone([0.015]), workload).mean_latency_s
    within = simulate(
        on(1, 1), alone([0.015]), workload, overheads=Overheads(gap_s=(0.004,))
    ).mean_latency_s
    assert within > 3 * without


@pytest.mark.parametrize(
    ("dispatch", "groups"),
    [
        ("shortest_queue", [0, 1, 0, 1]),
        ("least_clock", [0, 1, 1, 1]),
        ("earliest_finish", [1, 1, 1, 0]),
    ],
)
def test_who_is_asked(dispatch: str, groups: list[int]) -> None:
    """Group 0 takes 4 seconds, group 1 one second."""
    profile = single_pass("a", "d", {(1, 1): [4.0], (2, 1): [1.0]}, 1)
    placement = Placement(
        (Group((0,), ONE, ("a",)), Group((1, 2), Configuration(2, 1), ("a",))),
    )
    workload = Workload.of(["a"], [0, 0, 0, 0])
    outcome = simulate(placement, {"a": profile}, workload, dispatch=dispatch)
    assert outcome.group.tolist() == groups


def batch_profile() -> dict[str, Profile]:
    rows = tuple(BatchTime(n, (seconds,)) for n, seconds in ((1, 1.0), (2, 1.5), (4, 2.0)))
    timing = Timing(ONE, (1,), batches=rows)
    return {name: Profile(name, "d", MADE_UP, (timing,)) for name in "ab"}


def test_batches_are_the_largest_that_meet_the_head() -> None:
    """While the first request runs alone, five of a and two of b come."""
    placement = Placement.equal_groups(1, ONE, [["a", "b"]])
    arrival_s = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
    model = [0, 0, 1, 0, 0, 0, 0, 1]
    slo_s = [9, 2.5, 9, 9, 9, 9, 9, 9]
    workload = Workload.of(["a", "b"], arrival_s, model, slo_s=slo_s)
    outcome = simulate(placement, batch_profile(), workload, batching=True)
    # at 1.0 the head must be answered by 2.6: two of a; at 2.5 both of b; at 4.0 three of a
    # wait, so two, and the last one alone
    assert outcome.answered_s.tolist() == [1, 2.5, 4, 2.5, 5.5, 5.5, 6.5, 4]
    assert outcome.busy_s.tolist() == [6.5], "a batch is counted once"
    tight = workload.with_slo(1.6)
    outcome = simulate(placement, batch_profile(), tight, batching=True)
    assert outcome.status.tolist() == ([FINISHED] + [REJECTED] * 3) * 2
    assert outcome.answered_s.tolist() == [1, 1, 1, 1, 2, 2, 2, 2], "refused when their turn came"
    with pytest.raises(ValueError, match="dispatch with batching: expected 'shortest_queue'"):
        simulate(placement, batch_profile(), tight, batching=True, dispatch="least_clock")


def test_a_stopped_group_hands_its_work_over() -> None:
    workload = Workload.of(["a"], [0, 0, 0, 5], slo_s=[3, 4, 3, 9])
    events = [Event(0.5, "down", 0), Event(4.0, "up", 0)]
    outcome = simulate(on(2, 1), alone([1.0]), workload, events=events)
    assert outcome.answered_s.tolist() == [2, 1, 3, 6], "asked again in order of arrival"
    assert outcome.group.tolist() == [1, 1, 1, 0]
    assert outcome.busy_s.tolist() == [1, 3], "what was lost is not counted"
    outcome = simulate(on(2, 1), alone([1.0]), workload, events=events, retry=False)
    assert outcome.status.tolist() == [FAILED, FINISHED, FAILED, FINISHED]
    assert outcome.answered_s.tolist() == [0.5, 1, 0.5, 6]


def test_groups_and_models_that_come_later() -> None:
    workload = Workload.of(["a"], [0, 1, 2, 3, 4, 5])
    events = [Event(1.0, "up", 0), Event(3.0, "unload", 0, "a"), Event(5.0, "load", 0, "a")]
    outcome = simulate(on(1, 1), alone([1.0]), workload, events=events)
    finished = [UNPLACED, FINISHED, FINISHED, UNPLACED, UNPLACED, FINISHED]
    assert outcome.status.tolist() == finished
    late = [Event(2.5, "load", 0, "a")]
    outcome = simulate(on(1, 1), alone([1.0]), workload, events=late)
    assert outcome.status.tolist() == [UNPLACED] * 3 + [FINISHED] * 3
    assert outcome.group.tolist() == [-1] * 3 + [0] * 3


def test_estimates_are_off_after_a_clock_jump_until_old_work_is_through() -> None:
    workload = Workload.of(["a"], [0, 0.5, 1.5, 2.5], slo_s=[9, 2, 2, 2])
    profiles = alone([1.0])
    calm = simulate(on(1, 1), profiles, workload)
    assert calm.attainment == 1
    late = simulate(on(1, 1), profiles, workload, events=[Event(0.25, "clock", 0, seconds=5.0)])
    assert late.status.tolist() == [FINISHED, REJECTED, FINISHED, FINISHED]
    tight = workload.with_slo(1.2)
    early = simulate(on(1, 1), profiles, tight, events=[Event(0.25, "clock", 0, seconds=-5.0)])
    assert early.counts == {"finished": 3, "rejected": 1, "unplaced": 0, "failed": 0, "late": 1}


def test_models_without_a_group_are_told_so_at_once() -> None:
    workload = Workload.of(["a", "b"], [0, 1, 2], [0, 1, 0])
    outcome = simulate(on(1, 1), alone([0.5]), workload)
    assert outcome.status.tolist() == [FINISHED, UNPLACED, FINISHED]
    assert outcome.answered_s.tolist() == [0.5, 1, 2.5]
    empty = simulate(Placement(()), {}, workload)
    assert empty.counts["unplaced"] == 3
    assert simulate(on(1, 1), alone([0.5]), Workload.of(["a"], [])).attainment == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dispatch": "random"}, "dispatch: expected one of"),
        ({"impl": "fast"}, "impl: expected 'native' or 'reference'"),
        ({"noise": np.ones((2, 1))}, "noise: expected factors of 3 requests and at least 1"),
        ({"noise": np.zeros((3, 1))}, "noise: expected factors above 0"),
        ({"events": [Event(1.0, "down", 7)]}, "event: expected one of 1 groups"),
        ({"events": [Event(-1.0, "down", 0)]}, "event: expected a moment from 0 on"),
        ({"events": [Event(1.0, "down", 0, "a")]}, "event: expected a model only to load"),
        ({"events": [Event(1.0, "clock", 0)]}, "event: expected seconds for a clock"),
    ],
)
def test_settings_that_cannot_be(options: dict, says: str) -> None:
    workload = Workload.of(["a"], [0, 1, 2])
    with pytest.raises(ValueError, match=f"^{says}"):
        simulate(on(1, 1), alone([0.5]), workload, **options)


def test_models_that_were_not_timed_are_named() -> None:
    with pytest.raises(ValueError, match="configuration of a: expected one of 1 x 2, got 1 x 1"):
        simulate(on(1, 1), alone([0.5, 0.5]), Workload.of(["a"], [0.0]))


def test_without_a_compiler_the_plain_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload.of(["a"], [0.0])
    assert ClusterSim({}, workload).impl == "native"
    monkeypatch.setattr(_native, "compiler", lambda: None)
    assert ClusterSim({}, workload).impl == "reference"
    with pytest.raises(RuntimeError, match="a C\\+\\+ compiler, found none"):
        _native.load_plain(Path("elsewhere.cpp"))


# --- laws ----------------------------------------------------------------------------------------


def draw(seed: int, num_requests: int = 150, num_events: int = 12):
    rng = random.Random(seed)
    names = list("abcde"[: rng.randint(1, 5)])
    placement = draw_placement(rng, names, rng.randint(0, 5))
    workload = draw_workload(rng, names, num_requests)
    count = rng.choice([0, num_events])
    events = draw_events(rng, names, len(placement.groups), workload.duration_s, count)
    if not placement.groups:
        events = ()
    return rng, placement, draw_profiles(rng, names), workload, events


@given(seeds)
def test_both_loops_give_the_same_bits(seed: int) -> None:
    rng, placement, profiles, workload, events = draw(seed)
    options = draw_options(rng, workload)
    plain = simulate(placement, profiles, workload, events=events, impl="reference", **options)
    quick = simulate(placement, profiles, workload, events=events, impl="native", **options)
    equal(plain, quick)
    plain.check_invariants()


@given(seeds)
def test_what_was_taken_in_time_is_served_in_time(seed: int) -> None:
    _, placement, profiles, workload, _ = draw(seed)
    for dispatch in DISPATCH:
        outcome = simulate(placement, profiles, workload, dispatch=dispatch)
        outcome.check_invariants()
        np.testing.assert_array_equal(outcome.met, outcome.finished)
        assert (outcome.counts["unplaced"] > 0) == bool(
            set(workload.model) - {workload.models.index(m) for m in placement.models}
        )


@given(seeds)
def test_nothing_is_lost_and_no_stage_is_taken_twice(seed: int) -> None:
    rng, placement, profiles, workload, events = draw(seed, num_events=30)
    options = draw_options(rng, workload)
    options["noise"] = None
    outcome = simulate(placement, profiles, workload, events=events, **options)
    outcome.check_invariants()
    assert sum(outcome.counts[name] for name in ("finished", "rejected", "unplaced", "failed")) == (
        workload.num_requests
    )
    check_stages(outcome, profiles, options["overheads"] or Overheads())


def test_a_storm_loses_nothing_and_leaves_nothing_behind() -> None:
    told = storms(30_000, each=5000)
    assert told.otherwise > 1000, "or there was no storm"


@pytest.mark.nightly
def test_a_million_requests_through_storms() -> None:
    assert storms(1_000_000, first_seed=1000).requests >= 1_000_000


@given(seeds)
def test_only_what_can_have_changed_is_simulated_again(seed: int) -> None:
    rng, placement, profiles, workload, events = draw(seed, num_requests=60)
    options = draw_options(rng, workload)
    sim = ClusterSim(profiles, workload, events=events, **options)
    for _ in range(4):
        before = sim.num_simulated
        equal(sim.run(placement), simulate(placement, profiles, workload, events=events, **options))
        after = sim.num_simulated
        equal(sim.run(placement), sim.run(placement))
        assert sim.num_simulated == after, "what was simulated before is remembered"
        if before:
            assert after - before <= 2, "a moved model concerns at most two components"
        if not placement.groups:
            return
        index = rng.randrange(len(placement.groups))
        groups = list(placement.groups)
        group = groups[index]
        model = rng.choice(workload.models)
        kept = tuple(m for m in group.models if m != model)
        groups[index] = group._replace(models=kept if model in group.models else (*kept, model))
        placement = Placement(tuple(groups))


def test_models_apart_are_simulated_apart() -> None:
    names = ["a", "b", "c"]
    profiles = draw_profiles(random.Random(0), names)
    workload = draw_workload(random.Random(0), names, 100)
    placement = Placement.equal_groups(4, ONE, [["a"], ["b"], ["c"], ["c"]])
    sim = ClusterSim(profiles, workload)
    sim.run(placement)
    assert sim.num_simulated == 3
    sim.run(placement.hosting("b", 3))
    assert sim.num_simulated == 4, "a is remembered; b and c are one part now"
    forgetful = ClusterSim(profiles, workload, cache_bytes=0)
    equal(forgetful.run(placement), sim.run(placement))
    equal(forgetful.run(placement), sim.run(placement))
    assert forgetful.num_simulated == 6


def test_noise_has_mean_one_and_its_cv() -> None:
    noise = stage_noise(50_000, 2, 0.3, np.random.default_rng(0))
    assert noise.mean() == pytest.approx(1, rel=0.01)
    assert noise.std() == pytest.approx(0.3, rel=0.03)
    assert np.all(stage_noise(3, 2, 0.0, np.random.default_rng(0)) == 1)
