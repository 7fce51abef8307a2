"""Placements over time: what a switch costs, and that it is made only where it pays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.sched.cluster_sim import simulate
from blocks.sched.place_search import (
    Timeline,
    canonical,
    replan,
    replan_over_time,
    round_robin,
    selective_replication,
    swapping,
    switch,
)
from blocks.sched.placement import Placement
from blocks.sched.profile import Configuration, single_pass
from blocks.sched.workload import Workload, gamma_workload, merge

GB = 10**9
STAGE_S = {(1, 1): [0.1], (1, 2): [0.051, 0.052]}
PROFILES = {name: single_pass(name, "V100", STAGE_S, 2 * GB) for name in "abcdef"}
ONE, TWO = Configuration(1, 1), Configuration(1, 2)
GROUPS = st.lists(
    st.one_of(
        st.tuples(st.just(ONE), st.sets(st.sampled_from("abc")).map(sorted)),
        st.tuples(st.just(TWO), st.sets(st.sampled_from("abcd")).map(sorted)),
    ),
    min_size=1,
    max_size=4,
)


def drifting(windows: int = 4, window_s: float = 30.0) -> Workload:
    """Six models of which two are asked for at a time, others in each window."""
    whole: list[Workload] = []
    for index in range(windows):
        rates = np.roll([9.0, 6.0, 0.05, 0.05, 0.05, 0.05], 2 * index)
        rng = np.random.default_rng(index)
        part = gamma_workload(rates, 2.0, window_s, rng, list(PROFILES), 0.4)
        whole.append(part.delayed(index * window_s))
    return merge(whole)


@settings(max_examples=25)
@given(GROUPS, GROUPS)
def test_a_switch_loads_what_is_missing_and_shares_no_device(
    old: list[tuple[Configuration, list[str]]], new: list[tuple[Configuration, list[str]]]
) -> None:
    before, after = canonical(old), canonical(new)
    change = switch(before, after, PROFILES, 1e9)
    placement = change.placement
    assert canonical((g.configuration, g.models) for g in placement.groups) == after
    assert placement.problems(PROFILES, 10**12) == ()
    loads = {load.group: load for load in change.loads}
    for index, (group, kept) in enumerate(zip(placement.groups, change.kept, strict=True)):
        there = set(before.groups[kept].models) if kept >= 0 else set()
        if kept >= 0:
            assert before.groups[kept].configuration == group.configuration
            assert before.groups[kept].devices == group.devices
        load = loads.get(index)
        assert set(load.loaded if load else ()) == set(group.models) - there
        assert set(load.unloaded if load else ()) == there - set(group.models)
        if load is not None:
            each = 2 * GB // group.configuration.num_devices
            assert load.bytes == len(load.loaded) * each
            assert load.away_s == pytest.approx(load.bytes / 1e9)
    assert len({kept for kept in change.kept if kept >= 0}) == sum(k >= 0 for k in change.kept)
    assert switch(placement, placement, PROFILES).loads == ()
    assert switch(before, after, PROFILES, float("inf")).away_device_s == 0


def served(timeline: Timeline, arrivals: list[float], model: str = "a") -> list[bool]:
    workload = Workload.of([*PROFILES], arrivals, list(PROFILES).index(model), slo_s=0.4)
    return timeline.serve(PROFILES, workload).met.tolist()


def singles(*models: str) -> Placement:
    return canonical((ONE, one) for one in models)


def test_a_group_is_away_while_it_loads() -> None:
    timeline = Timeline.of([singles("b"), singles("ab"), singles("a")], 10, PROFILES, 1e9)
    assert [at for at, _ in timeline.changes] == [10.0, 20.0]
    assert served(timeline, [5, 10.5, 11.9, 12.1, 25]) == [False, False, False, True, True]
    assert served(timeline, [5, 10.5, 11.9, 12.1, 25], "b") == [True, False, False, True, False]
    assert timeline.num_loads == 1
    assert timeline.bytes == 2 * GB


def test_a_change_before_the_last_one_is_through_waits_for_it() -> None:
    slow = Timeline.of([singles("b"), singles("a"), singles("b")], 10, PROFILES, 2 * GB / 15)
    assert served(slow, [9.0, 20.5, 26.0, 39.0, 40.5], "b") == [True, False, False, False, True]
    assert served(slow, [24.0, 26.0, 41.0], "a") == [False, False, False], "it was given up"


def test_regrouped_devices_load_everything() -> None:
    timeline = Timeline.of([singles("a", "b"), canonical([(TWO, "ab")])], 10, PROFILES, 1e9)
    assert timeline.bytes == 4 * GB
    assert served(timeline, [9, 11.9, 12.1]) == [True, False, True]
    back = Timeline.of([canonical([(TWO, "ab")]), singles("a")], 10, PROFILES, 1e9)
    assert served(back, [9, 11.9, 12.1]) == [True, False, True]
    assert served(back, [9, 12.1], "b") == [True, False]


@settings(max_examples=15)
@given(st.lists(GROUPS, min_size=1, max_size=4))
def test_windows_that_do_not_touch_are_served_as_if_alone(
    windows: list[list[tuple[Configuration, list[str]]]],
) -> None:
    placements = [canonical(groups) for groups in windows]
    arrivals = [0.0, 0.02, 0.05, 0.3, 0.31, 0.4]
    models = [0, 1, 2, 3, 0, 1]
    alone = Workload.of([*PROFILES], arrivals, models, slo_s=0.25, duration_s=10.0)
    whole = merge([alone.delayed(10.0 * index) for index in range(len(placements))])
    timeline = Timeline.of(placements, 10, PROFILES, float("inf"))
    met = [simulate(placement, PROFILES, alone).met.sum() for placement in placements]
    assert timeline.serve(PROFILES, whole).met.sum() == sum(met)


def test_never_below_one_placement_nor_below_swapping_at_equal_cost() -> None:
    workload = drifting(3, 20.0)
    plan = replan_over_time(workload, PROFILES, 2, 3 * GB, every_s=20, local_simulations=5)
    swaps = swapping(workload, PROFILES, 2, 3 * GB, every_s=20)
    assert swaps.serve(PROFILES, workload).attainment == plan.swapped
    assert plan.attainment == max(plan.static, plan.swapped, plan.adapted)
    assert plan.timeline.serve(PROFILES, workload).attainment == plan.attainment
    assert plan.timeline.changes
    for _, change in plan.timeline.changes:
        assert change.placement.problems(PROFILES, 3 * GB, 2) == ()
    assert plan.attainment > plan.static + 0.05, "traffic drifts, so changes pay"


def test_it_stays_where_a_switch_costs_more_than_it_gains() -> None:
    workload = drifting(windows=1)
    current = singles("d", "e")
    go = replan(current, workload, PROFILES, 2, 3 * GB, local_simulations=10)
    assert go.switch is not None
    assert go.go > go.stay + 0.5
    assert go.switch.placement.problems(PROFILES, 3 * GB, 2) == ()
    stay = replan(current, workload, PROFILES, 2, 3 * GB, bytes_per_s=1e6, local_simulations=10)
    assert stay.switch is None
    assert stay.go == stay.stay
    settled = replan(go.switch.placement, workload, PROFILES, 2, 3 * GB, local_simulations=10)
    assert settled.go >= go.go


def test_round_robin_deals_models_until_memory_is_full() -> None:
    workload = drifting(windows=1)
    placement = round_robin(workload, PROFILES, 5, 3 * GB, TWO)
    assert [group.models for group in placement.groups] == [("a", "c", "e"), ("b", "d", "f")]
    twice = round_robin(workload, PROFILES, 6, 5 * GB, TWO)
    replicas = [len(twice.groups_of(model)) for model in PROFILES]
    assert sum(replicas) == 3 * 5
    assert max(replicas) - min(replicas) == 1
    assert twice.problems(PROFILES, 5 * GB, 6) == ()


def test_selective_replication_spreads_no_model() -> None:
    placement = selective_replication(drifting(windows=1), PROFILES, 3, 5 * GB)
    assert {group.configuration for group in placement.groups} == {ONE}
    assert placement.problems(PROFILES, 5 * GB, 3) == ()
