"""Tasks with a known optimum: what is found, compared, asked and refused."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sched.cluster_sim import Event, simulate
from blocks.sched.placement import Placement
from blocks.sched.profile import Configuration, single_pass
from blocks.sched.workload import Workload
from recipes.model.bundled import bundled_model
from recipes.place.config_file import read_config
from recipes.place.planning import (
    AXES,
    Change,
    PlaceTask,
    carries,
    curve,
    find_placement,
    impossible,
    read_placement,
    read_plan,
    unhosted,
    ways,
    what_if,
    workload_at,
    write_placement,
)
from recipes.place.planning.events_file import read_events
from recipes.place.planning.profiles_here import profiles_here
from recipes.place.planning.replicas import replicated, swapped
from recipes.place.planning.search import Watched
from recipes.place.planning.served import by_group, by_model, by_time
from tests.place.planning_cases import two_models, writers

SPREAD = Placement.equal_groups(2, Configuration(1, 2), [["a", "b"]])
APART = Placement.equal_groups(2, Configuration(1, 1), [["a"], ["b"]])


def task_of(path, *settings) -> PlaceTask:
    config = read_config(path, settings)
    return PlaceTask.of(config, profiles_here(config, print))


# --- placing --------------------------------------------------------------------------------------


def test_the_known_best_placement_is_found_and_certified(tmp_path):
    plan = find_placement(task_of(two_models(tmp_path)))
    assert plan.placement == SPREAD
    assert (plan.attainment, plan.bound, plan.gap) == (1.0, 1.0, 0.0)


def test_groups_stay_within_nodes(tmp_path):
    task = task_of(two_models(tmp_path), "num_devices=6", "num_nodes=2")  # of three devices
    plan = find_placement(task, configurations=[Configuration(1, 2)])
    assert [group.configuration for group in plan.placement.groups] == [(1, 2)] * 3
    nodes = [{device // 3 for device in group.devices} for group in plan.placement.groups]
    assert sorted(map(len, nodes)) == [1, 1, 2]  # a pair from each node, and what is left
    assert task.checked(plan.placement) is plan.placement


def test_every_way_attains_what_can_be_worked_out(tmp_path):
    found = {way.name: way for way in ways(task_of(two_models(tmp_path)), SPREAD)}
    searched = {name: way.searched for name, way in found.items()}
    assert searched == {
        "this placement": 1.0,
        "selective replication": 0.5,  # the second of each burst is late
        "round robin": 1.0,  # both models on the one group of two stages
        "swapping": 0.5,
    }


def test_what_would_change_it_is_what_can_be_worked_out(tmp_path):
    task = task_of(two_models(tmp_path, slo_s=1.2))  # now the second is late either way
    plan = find_placement(task)
    assert plan.attainment == 0.5
    asked = what_if(task, plan.placement)
    assert all(one.gain == one.attainment - 0.5 for one in asked)
    found = {one.change: one.attainment for one in asked}
    assert found == {
        "one device more (3)": 0.75,  # one model twice
        "a quarter more devices (4)": 1.0,  # both
        "a quarter more memory a device": 0.5,
        "limits half as long again": 1.0,
    }


def test_what_a_placement_carries(tmp_path):
    task = task_of(two_models(tmp_path))
    assert (
        carries(task, SPREAD) == 10.0
    )  # the second burst may begin when the first is one stage on
    assert carries(task, APART) == 0.0


def test_models_that_generate_get_rooms_and_are_compared(tmp_path):
    task = task_of(writers(tmp_path))
    plan = find_placement(task, beam_simulations=0, local_simulations=0)
    assert set(plan.placement.models) == {"write", "draft"}
    assert all(min(group.kv_tokens) >= 1024 for group in plan.placement.groups)
    found = ways(task, plan.placement)
    assert [way.name for way in found] == [
        *("this placement", "selective replication", "round robin", "swapping")
    ]
    assert found[3].searched == found[1].searched  # one window, the same traffic
    assert found[0].searched == plan.attainment >= found[1].searched
    assert task.outcome(plan.placement).attainment == plan.attainment


def test_models_that_generate_are_swapped_where_one_at_a_time_fits(tmp_path):
    """The first half of the trace asks for one model, the second for the other."""
    path = writers(tmp_path)
    rows = [f"{at_s},8,2,write" for at_s in range(0, 20, 2)]
    rows += [f"{at_s}.5,8,2,draft" for at_s in range(20, 40, 2)]
    head = "TIMESTAMP,ContextTokens,GeneratedTokens,Model"
    (tmp_path / "log.csv").write_text("\n".join([head, *rows]) + "\n")
    data = json.loads(path.read_text())
    data["traffic"] = {"trace": "log.csv", "trace_model": "Model"}
    data["cluster"] = {"num_devices": 1, "memory": "3GiB"}  # weights are 2 GB
    path.write_text(json.dumps(data))
    quick = ("replan_every_s=20", "load_bytes_per_s=1e15")
    assert swapped(task_of(path, *quick)) == 1.0
    task = task_of(path, *quick[:1])
    assert task.simulator().run(replicated(task)).attainment == 0.5
    assert swapped(task) == 0.95  # one request comes while the other model is loaded, for 2 s


def test_rooms_leave_memory_for_the_block_that_holds_no_tokens(tmp_path):
    task = task_of(writers(tmp_path))
    plan = find_placement(task, beam_simulations=0, local_simulations=0)
    for group in plan.placement.groups:
        timings = [task.profiles[model].timing(group.configuration) for model in group.models]
        needed = sum(
            max(timing.weight_bytes) + (room + 16) * timing.kv_bytes_per_token
            for timing, room in zip(timings, group.kv_tokens, strict=True)
        )
        assert needed <= task.memory_bytes
        assert all(room % 16 == 0 for room in group.kv_tokens)
        assert max(group.kv_tokens) <= 64 * 2048  # what 64 sequences of full length can fill
    (first, *others) = plan.placement.groups
    full = Placement((first._replace(kv_tokens=tuple(r + 2**20 for r in first.kv_tokens)), *others))
    with pytest.raises(ValueError, match=r"memory: .* bytes a device for 2 models"):
        task.checked(full)


def test_models_of_two_kinds_are_not_simulated_together(tmp_path):
    two_models(tmp_path)
    path = writers(tmp_path)
    data = json.loads(path.read_text())
    data["models"].append({"name": "pass", "profile": "m.profile", "slo_s": 3})
    path.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"\['write', 'draft'\] generate, \['pass'\] answer in"):
        task_of(path)


def test_progress_is_told_as_time_goes_by(tmp_path):
    task, now, lines = task_of(two_models(tmp_path)), [0.0], []

    def clock():
        now[0] += 2
        return now[0]

    watched = Watched(task, lines.append, 5.0, clock=clock)
    for placement in (APART, SPREAD, APART, SPREAD, APART):
        watched.run(placement)
    assert lines == ["  6 s: 3 simulated, best 100.00%"]


# --- what cannot be -------------------------------------------------------------------------------


def test_a_model_that_fits_nowhere_is_named_with_what_is_missing(tmp_path):
    task = task_of(two_models(tmp_path), "memory=400MiB")
    (one, _) = impossible(task)
    missing = 500_000_000 - 400 * 2**20
    assert (one.kind, one.shortfall) == ("memory", missing)
    assert one.text == (
        "a needs 500,000,000 bytes a device even as 1 x 2, 419,430,400 there: 80,569,600 short"
    )
    with pytest.raises(ValueError, match=r"cannot be placed.*\n  memory: a needs"):
        find_placement(task)


def test_a_limit_that_cannot_be_met_is_named_with_what_is_missing(tmp_path):
    (one, _) = impossible(task_of(two_models(tmp_path, slo_s=0.75)))
    assert one.text == "a.slo_s is 0.75 s, alone it takes 1 s as 1 x 1: 0.25 s too short"
    problems = impossible(task_of(writers(tmp_path), "write.ttft_s=1e-9", "draft.tpot_s=1e-9"))
    assert [problem.text.partition(" is")[0] for problem in problems] == [
        "write.ttft_s",
        "draft.tpot_s",
    ]


def test_a_model_that_needs_more_devices_is_named_with_how_many(tmp_path):
    task = task_of(two_models(tmp_path), "num_devices=1")
    wide = single_pass("a", "CPU", {(2, 2): [1.0, 1.0]}, 10)
    (one,) = impossible(dataclasses.replace(task, profiles={**task.profiles, "a": wide}))
    assert (one.kind, one.shortfall) == ("devices", 3)


def test_models_without_a_group_are_told_with_what_is_missing(tmp_path):
    task = task_of(two_models(tmp_path), "memory=600MiB")
    half = Placement.equal_groups(2, Configuration(1, 2), [["a"]])
    missing = 10**9 - 600 * 2**20  # halves of both models
    assert unhosted(task, half) == (
        f"b is not hosted: {missing:,} bytes a device short on group 0, where it fits best",
    )
    assert unhosted(task, SPREAD) == ()


@pytest.mark.parametrize(
    ("placement", "text"),
    [
        (Placement.equal_groups(4, Configuration(1, 2), [["a"], ["b"]]), "unknown device"),
        (Placement.equal_groups(2, Configuration(1, 1), [["a", "b"]]), "memory: 2,000,000,000"),
        (Placement.equal_groups(2, Configuration(1, 2), [["c"]]), r"models of \['a', 'b'\]"),
    ],
)
def test_placements_that_do_not_fit_the_config_are_not_simulated(tmp_path, placement, text):
    with pytest.raises(ValueError, match=text):
        task_of(two_models(tmp_path)).outcome(placement)


def test_replicas_without_room_for_tokens_are_not_simulated(tmp_path):
    task = task_of(writers(tmp_path))
    bare = Placement.equal_groups(2, Configuration(1, 1), [["write"], ["draft"]])
    with pytest.raises(ValueError, match="write on group 0"):
        task.outcome(bare)


# --- traffic that changes -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["drawn", "trace"])
def test_a_change_changes_what_it_says(tmp_path, kind):
    settings = ["total_rate=40", "duration_s=200"] if kind == "drawn" else []
    make = writers if kind == "drawn" else two_models
    config = read_config(make(tmp_path), settings)
    base = workload_at(config, Change())
    faster = workload_at(config, Change(rate=2.0))
    assert faster.rates().sum() == pytest.approx(2 * base.rates().sum(), rel=0.1)
    looser = workload_at(config, Change(slo=3.0))
    assert np.array_equal(looser.arrival_s, base.arrival_s)
    assert np.allclose(looser.slo_s, 3 * base.slo_s)
    assert np.allclose(looser.tpot_s, 3 * base.tpot_s)
    again = workload_at(config, Change(draw=1))
    assert not np.array_equal(again.arrival_s, base.arrival_s)
    if kind == "drawn":
        burstier = workload_at(config, Change(cv=4.0))
        assert burstier.cv("write") > 2 * base.cv("write")


# --- curves ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", AXES)
def test_a_curve_passes_through_what_the_task_itself_attains(tmp_path, axis):
    task = task_of(two_models(tmp_path))
    found = curve(task, SPREAD, axis, draw=0)
    here = next(point for point in found.points if point.value == found.here)
    assert here.attained == {
        "this placement": task.outcome(SPREAD).attainment,
        "selective replication": 0.5,
        "swapping": 0.5,
    }
    assert [point.value for point in found.points] == sorted({p.value for p in found.points})


def test_a_curve_over_limits_is_what_can_be_worked_out(tmp_path):
    found = curve(task_of(two_models(tmp_path)), SPREAD, "slo", draw=0)
    assert [point.attained["this placement"] for point in found.points] == [0, 0.5, 1, 1, 1, 1]
    replicated = [point.attained["selective replication"] for point in found.points]
    assert replicated == [0, 0.5, 0.5, 1, 1, 1]


# --- tables ---------------------------------------------------------------------------------------


def test_rows_of_models_groups_and_time_are_what_can_be_worked_out(tmp_path):
    outcome = task_of(two_models(tmp_path)).outcome(
        SPREAD, [Event(0.6, "down", 0), Event(5.0, "up", 0)]
    )
    everybody, a, b = by_model(outcome)
    assert (everybody.requests, everybody.attainment, everybody.replicas) == (4, 0.5, 2)
    assert (a.attainment, a.unplaced, a.failed) == (0.0, 2, 0)
    assert (b.attainment, b.latency_s.p50, b.latency_s.p99) == (1.0, 1.25, pytest.approx(1.495))
    assert a.ttft_s is None
    (group,) = by_group(outcome)
    assert group.requests == 2
    assert [(one.requests, one.attainment) for one in by_time(outcome, [0.6, 5.0])] == [
        (2, 0.0),
        (0, 1.0),
        (2, 1.0),
    ]


@given(st.lists(st.tuples(st.floats(0, 99), st.integers(0, 1)), max_size=30), st.data())
def test_rows_add_up(requests, data):
    profiles = {name: single_pass(name, "CPU", {(1, 1): [2.0]}, 1) for name in "ab"}
    moments, models = [at_s for at_s, _ in requests], [model for _, model in requests]
    workload = Workload.of("ab", moments, models, slo_s=4.0, duration_s=100)
    outcome = simulate(APART, profiles, workload, impl="reference")
    everybody, *rows = by_model(outcome)
    assert everybody.requests == sum(row.requests for row in rows) == len(requests)
    for name in ("refused", "unplaced", "failed", "late"):
        assert getattr(everybody, name) == sum(getattr(row, name) for row in rows)
    assert sum(row.requests for row in by_group(outcome)) == int(outcome.finished.sum())
    cuts_s = data.draw(st.lists(st.floats(0, 120), max_size=4))
    stretches = by_time(outcome, cuts_s)
    assert len(stretches) == 1 + len({cut_s for cut_s in cuts_s if 0 < cut_s < 100})
    assert sum(one.requests for one in stretches) == len(requests)
    met = sum(one.requests * one.attainment for one in stretches)
    assert met == pytest.approx(outcome.attainment * len(requests))


# --- files ----------------------------------------------------------------------------------------


def test_placement_files_are_read_back_and_so_are_bare_placements(tmp_path):
    plan = find_placement(task_of(two_models(tmp_path)))
    path = write_placement(tmp_path / "out" / "placement.json", plan)
    assert read_plan(path) == plan
    assert read_placement(path) == plan.placement
    plan.placement.save(tmp_path / "bare.json")
    assert read_placement(tmp_path / "bare.json") == plan.placement


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", "{", '{"format": "llm-blocks placement", "version": 2, "plan": {}}'),
        pytest.param("[" * 100_000, id="deep"),
        '{"format": "llm-blocks placement", "version": 1}',
        '{"groups": []}',
        '{"version": 1, "groups": [{"devices": [0], "configuration": "1 x 1", "models": "ab", '
        '"kv_tokens": []}]}',
        *('{"format": "other", "version": 1}', '{"version": 1, "groups": [{}]}', "\x00"),
    ],
)
def test_other_files_are_refused_in_the_words_of_the_house(tmp_path, text):
    path = tmp_path / "placement.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"expected .*, got"):
        read_placement(path)
    with pytest.raises(ValueError, match=r"recipes\.place plan CONFIG --out FILE"):
        read_placement(tmp_path / "none.json")


def test_events_are_read_in_order_of_time(tmp_path):
    path = tmp_path / "faults.json"
    path.write_text(
        '[{"at_s": 9, "kind": "up", "group": 0}, {"at_s": 2.5, "kind": "down", "group": 0}]'
    )
    assert read_events(path) == (Event(2.5, "down", 0), Event(9, "up", 0))


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "[1]", "nonsense", '[{"at_s": 1, "kind": "down"}]'),
        pytest.param("[" * 100_000, id="deep"),
        '[{"at_s": "1", "kind": "down", "group": 0}]',
        '[{"at_s": true, "kind": "down", "group": 0}]',
        '[{"at_s": 1, "kind": "down", "group": 0.5}]',
        '[{"at_s": 1, "kind": "down", "group": 0, "why": "x"}]',
    ],
)
def test_what_is_no_event_is_refused(tmp_path, text):
    path = tmp_path / "faults.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="expected"):
        read_events(path)


# --- profiles that are timed ----------------------------------------------------------------------


def test_a_model_is_timed_once_and_again_when_something_else_counts(tmp_path, monkeypatch):
    counted: list[str] = []
    lines: list[str] = []
    made = single_pass("model", "here", {(1, 1): [0.5]}, 10)
    monkeypatch.setenv("LLM_BLOCKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "recipes.place.measure.measure_profile",
        lambda folder, layouts, **rest: counted.append(folder.name) or made,
    )
    folder = tmp_path / "model"
    folder.mkdir()
    facts = (bundled_model() / "config.json").read_text()
    (folder / "config.json").write_text(facts)
    path = tmp_path / "config.json"
    models = [{"name": name, "folder": "model"} for name in ("chat", "code")]
    path.write_text(json.dumps({"models": models}))

    def profiles(*settings):
        return profiles_here(read_config(path, settings), lines.append)

    assert profiles() == {"chat": made.renamed("chat"), "code": made.renamed("code")}
    assert counted == ["model"]  # one folder
    assert profiles() == profiles()
    assert counted == ["model"]
    assert "timed before" in lines[-1]
    profiles("token_budget=64", "max_num_seqs=64")
    assert len(counted) == 2
    (folder / "config.json").write_text(facts + " ")
    profiles()
    assert len(counted) == 3
