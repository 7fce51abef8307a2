"""From layers and a cluster to a plan: what must hold of every plan, and what a plan must be."""

import dataclasses
import itertools
import json
import re
from typing import Any

import pytest

from blocks.pipeline import check_schedule
from blocks.pipeline.schedules import SCHEDULES
from recipes.plan.apply_plan import stages_of
from recipes.plan.diff import diff
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.search.step_time import step_time
from recipes.plan.view.explain import explain
from recipes.plan.view.picture import picture
from tests.plan.graphs import mlp
from tests.plan.searching import chain_of, cluster_of, mixed, search_all

FLAT = {"mesh_axes": 1, "max_stages": 1}
PINS = "layers.*.weight=S(1)"
CASES: dict[str, dict[str, Any]] = {
    "free": {},
    "whole": {"max_stages": 1},
    "lines": {"mesh_axes": 1, "num_microbatches": 8},
    "tight": {"mesh_axes": 1, "num_microbatches": 8, "memory_gib": 0.06},
    "again": {"recompute": True, "num_microbatches": 2, "schedules": "gpipe", "mesh_axes": 1},
}
OTHERS: dict[str, dict[str, Any]] = {
    "flat": FLAT,
    "too small": {**FLAT, "memory_gib": 0.001},
    "too small for stages": {"memory_gib": 0.001, "mesh_axes": 1},
    "short": {**FLAT, "traced_layers": 4, "num_layers": 9},
    "deep": {**FLAT, "num_layers": 9},
    "pinned": {**FLAT, "pins": PINS},
    "pinned to nothing": {"pins": "head.weight=S(0)"},
    "pinned wrongly": {**FLAT, "pins": "layers.*.weight=S(5)"},
    "large batch": {**FLAT, "batch_size": 16384, "num_microbatches": 1},
    "wide": {**FLAT, "batch_size": 8, "num_microbatches": 1, "width": 4096, "num_layers": 4},
}
MIXED = {"mesh_axes": 1, "num_layers": 8, "width": 2048, "batch_size": 4096}
OTHERS |= {kinds: {**MIXED, "kinds": kinds} for kinds in ("sb", "bs", "sbsb", "b")}
OTHERS |= {f"{kinds} idle": {**OTHERS[kinds], "idle_devices": True} for kinds in ("sb", "sbsb")}
OTHERS["sb side by side"] = {**OTHERS["sb"], "workers": 2}
OTHERS["sb too large"] = {**OTHERS["sb"], "width": 16384}
OTHERS["all in flight"] = {
    "mesh_axes": 1, "num_layers": 1, "width": 2048, "batch_size": 1024, "num_microbatches": 64,
    "schedules": "gpipe", "memory_gib": 0.03,
}  # fmt: skip
Plans = dict[str, Any]


@pytest.fixture(scope="module")
def plans() -> Plans:
    cases = CASES | OTHERS
    return dict(zip(cases, search_all(list(cases.values())), strict=True))


def test_no_plan_is_below_its_bound(plans: Plans):
    found = {name: plan for name, plan in plans.items() if isinstance(plan, ParallelPlan)}
    assert len(found) > 12
    for name, plan in found.items():
        assert plan.predicted.gap >= 0, name
        assert not any("stages solved alone take" in note for note in plan.notes), name


@pytest.mark.parametrize("case", CASES)
def test_every_plan_holds_together(plans: Plans, case: str):
    plan, settings = plans[case], CASES[case]
    assert ParallelPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert plan.num_devices == cluster_of().num_devices
    step_s, _ = step_time(plan.stages, plan.boundaries, plan.schedule, plan.num_microbatches)
    assert step_s == plan.predicted.step_s
    check_schedule(SCHEDULES[plan.schedule](len(plan.stages), (1,) * plan.num_microbatches))
    memory = settings.get("memory_gib", 16) * 2**30
    assert plan.peak_bytes <= memory
    for stage in plan.stages:
        assert "recompute" not in settings or stage.recompute == settings["recompute"]


def test_options_are_looked_at_for_all_microbatches_where_the_schedule_holds_them(plans: Plans):
    """What fits with all 64 of ``gpipe`` in flight is neither quickest nor smallest with one."""
    plan = plans["all in flight"]
    assert isinstance(plan, ParallelPlan), plan
    (stage,) = plan.stages
    assert stage.predicted.in_flight == 64
    assert plan.peak_bytes <= OTHERS["all in flight"]["memory_gib"] * 2**30


@pytest.mark.parametrize("case", CASES)
def test_a_plan_says_a_strategy_for_every_node_of_its_stages(plans: Plans, case: str):
    plan = plans[case]
    graph = mlp(6, batch=64 // plan.num_microbatches, width=1024)
    stages = stages_of(plan, graph)
    crossing = {(b.source, b.target, b.phase): b for b in plan.boundaries}
    for at, stage in enumerate(stages):
        assert len(stage.strategies) == len(stage.cut.graph.nodes)
        for node, strategy in zip(stage.cut.graph.nodes, stage.strategies, strict=True):
            if node.op == "receive":
                source = at - 1 if node.phase == "forward" else at + 1
                assert crossing[source, at, node.phase].placements[1] == strategy.outputs[0]
            if node.op == "send":
                target = at + 1 if node.phase == "forward" else at - 1
                assert crossing[at, target, node.phase].placements[0] == strategy.inputs[0]
    assert len(crossing) == len(plan.boundaries) == 2 * (len(stages) - 1)


def test_less_memory_never_makes_a_plan_faster(plans: Plans):
    free, tight = plans["lines"].predicted, plans["tight"].predicted
    assert tight.step_s >= free.step_s * (1 - 1e-9)


@pytest.mark.parametrize("case", ["too small", "too small for stages"])
def test_what_does_not_fit_says_by_how_much(plans: Plans, case: str):
    message = plans[case]
    sizes = r"memory of a device: expected ([\d.]+) [KM]iB, got ([\d.]+) [KM]iB; ([\d.]+) [KM]iB"
    found = re.match(sizes + " too few for stage ", message)
    assert found, message
    assert all(float(size) > 0 for size in found.groups())


def test_the_memory_that_is_said_to_be_needed_is_enough(plans: Plans):
    (needed,) = re.findall(r"expected ([\d.]+) MiB", plans["too small"])
    cases = [{**FLAT, "memory_gib": share * float(needed) / 1024} for share in (0.97, 1.02)]
    less, enough = search_all(cases)
    assert f"expected {needed} MiB" in str(less)
    assert isinstance(enough, ParallelPlan), enough
    assert enough.peak_bytes <= 1.02 * float(needed) * 2**20


def test_a_short_trace_plans_as_the_whole_model(plans: Plans):
    assert plans["short"] == plans["deep"]


def test_pins_are_honoured_and_the_rest_is_solved(plans: Plans):
    patterns = plans["pinned"].patterns.values()
    lies = {p.parameter for pattern in patterns for p in pattern.parameters.values()}
    assert lies == {"S(1)"}
    assert any("layers.*.weight" in line for line in diff(plans["flat"], plans["pinned"]))


def test_pins_of_nothing_are_refused(plans: Plans):
    assert plans["pinned to nothing"].startswith("pin: expected a name of the plan")
    assert "expected one of" in plans["pinned wrongly"]


def test_large_batches_of_small_layers_are_data_parallel(plans: Plans):
    """Gradients of 4 MB against activations of 64 MB: no activation is ever moved."""
    (stage,) = plans["large batch"].stages
    patterns = plans["large batch"].patterns
    assert patterns[stage.pattern_of(2)].choices["layers.* mm"] == "batch"


def test_small_batches_of_wide_layers_never_move_a_weight(plans: Plans):
    plan = plans["wide"]
    (stage,) = plan.stages
    for layer in range(4):
        pattern = plan.patterns[stage.pattern_of(layer)]
        assert pattern.choices["layers.* mm"] in ("in", "out")
        (places,) = pattern.parameters.values()
        assert len(set(places)) == 1
        assert places.parameter.startswith("S")


def test_explained_choices_cost_no_more_than_the_next_best(plans: Plans):
    plan = plans["flat"]
    chain = chain_of(64 // plan.num_microbatches)
    lines = explain(plan, chain, cluster_of())
    told = [line.split() for line in lines if "would take" in line]
    assert len(told) > 8
    for words in told:
        assert float(words[words.index("ms;") - 1]) <= float(words[-2])
    with pytest.raises(ValueError, match="cluster of the plan"):
        explain(plan, chain, cluster_of(2))
    with pytest.raises(ValueError, match="model of the plan"):
        explain(plan, chain_of(64, 5), cluster_of())


def test_what_crosses_between_stages_is_named_by_where_it_is_made(plans: Plans):
    plan = plans["lines"]
    lines = explain(plan, chain_of(64 // plan.num_microbatches), cluster_of())
    for at, (before, after) in enumerate(itertools.pairwise(plan.stages)):
        last = f"stage {at} to {at + 1}, forward: layers.{before.stop - 1} relu, "
        first = f"stage {at + 1} to {at}, backward: layers.{after.first} mm backward"
        assert sum(line.startswith(last) for line in lines) == 1
        assert sum(line.startswith(first) for line in lines) == 1


def test_pictures_and_differences(plans: Plans):
    one, other = plans["free"], plans["lines"]
    text = picture(one, 4)
    assert "node   0" in text
    assert "layers.*.weight" in text
    assert diff(one, one) == ()
    assert any(line.startswith("setting mesh_axes: 2 -> 1") for line in diff(one, other))
    stages = tuple(
        dataclasses.replace(s, patterns=tuple((a, b, f"{n}x") for a, b, n in s.patterns))
        for s in one.stages
    )
    patterns = {f"{name}x": pattern for name, pattern in one.patterns.items()}
    assert diff(one, dataclasses.replace(one, stages=stages, patterns=patterns)) == ()
    first = next(iter(one.patterns))
    choices = {**one.patterns[first].choices, "new": "-"}
    more = dict(one.patterns) | {first: dataclasses.replace(one.patterns[first], choices=choices)}
    (line,) = diff(one, dataclasses.replace(one, patterns=more))
    assert line.endswith(" new: not there -> not cut")


@pytest.mark.parametrize("kinds", ["sb", "bs", "sbsb"])
def test_devices_of_two_kinds_are_each_used_by_what_they_can(plans: Plans, kinds: str):
    """A small device holds 80 MiB and takes three times as long as a big one."""
    cluster, plan = mixed(kinds), plans[kinds]
    used = {rank for stage in plan.stages for rank in stage.mesh.ranks}
    assert used == set(range(cluster.num_devices))
    layers = {"small": 0, "big": 0}
    for stage in plan.stages:
        (kind,) = {cluster.kind_of(rank) for rank in stage.mesh.ranks}
        assert stage.predicted.peak_bytes <= kind.memory_bytes
        layers[kind.name] += stage.stop - stage.first
    assert layers["big"] > layers["small"] > 0
    assert plan.peak_bytes > cluster.kind("small").memory_bytes


def test_plans_are_the_same_whoever_looks_at_what(plans: Plans):
    alone, together = plans["sb"], plans["sb side by side"]
    assert len(alone.stages) > 1
    assert dataclasses.replace(together, settings=alone.settings) == alone


def test_what_does_not_fit_on_one_of_two_kinds_names_the_kind(plans: Plans):
    message = plans["sb too large"]
    assert re.search(r"expected [\d.]+ GiB, got 80 MiB; .*on 1x4 small\) in the plan", message)
    assert message.endswith(
        "leave devices out with idle_devices=True or use more devices (num_nodes, num_devices)"
    )


def test_devices_that_would_be_in_the_way_are_left_idle(plans: Plans):
    alone = plans["b"].predicted.step_s
    assert plans["sb idle"].predicted.step_s <= alone * (1 + 1e-9)
    assert plans["sb idle"].predicted.step_s <= plans["sb"].predicted.step_s * (1 + 1e-9)
    assert plans["sbsb idle"].predicted.step_s <= plans["sbsb"].predicted.step_s * (1 + 1e-9)
    notes = " ".join(plans["sb"].notes)
    assert "one stage" not in notes, "no submesh has devices of both kinds"
