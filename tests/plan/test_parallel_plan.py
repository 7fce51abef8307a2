"""Plan files: the way to text and back, what is refused, what needs to be loaded for it."""

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.sharding import Factor, OpRule
from recipes.plan.choice_text import choice_text, parse_choice
from recipes.plan.config import PlanConfig
from recipes.plan.parallel_plan import VERSION, ParallelPlan
from recipes.plan.stage_plan import parse_runs, runs_text
from tests.plan.plans import drawn_plan

SEEDS = st.integers(0, 2**32)


@given(SEEDS)
def test_text_and_back(seed):
    plan = drawn_plan(seed)
    assert ParallelPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@given(SEEDS)
def test_patterns_of_the_same_nodes_are_written_once(seed):
    plan = drawn_plan(seed)
    packed = plan.to_json()["patterns"]
    whole = [tuple(sorted(p["choices"])) for p in packed.values() if "like" not in p]
    assert len(set(whole)) == len(whole)


@given(st.lists(st.integers(0, 40), min_size=1, unique=True).map(tuple))
def test_runs_of_devices(numbers):
    assert parse_runs(runs_text(numbers)) == numbers


@given(st.lists(st.sampled_from(["row", "column", "k"]), min_size=1, max_size=4), st.data())
def test_choices_as_text(names, data):
    rule = OpRule(tuple(Factor(name, 4, "sum") for name in names), ((0,),), ((),), ((0,), (0,)))
    choices = data.draw(st.lists(st.integers(-3, len(names) - 1), min_size=1, max_size=3))
    assert parse_choice(rule, choice_text(rule, choices)) == tuple(choices)


FIELDS = """
    batch_size boundaries cluster dtype idle_devices max_stage_devices max_stages memory_gib
    memory_points mesh_axes microbatch_choices model notes num_devices num_microbatches num_nodes
    optimizer patterns pins predicted recompute schedule schedules seq_len settings stages workers
"""
"""Fields and settings of plans of version 2."""


def test_what_plans_of_this_version_have_is_still_read():
    """Plans name what they were made with: a new name needs a default, a lost one a new version."""
    fields = [*dataclasses.fields(ParallelPlan), *dataclasses.fields(PlanConfig)]
    assert VERSION == 2
    assert {field.name for field in fields} >= set(FIELDS.split()), "VERSION is another one now"
    assert PlanConfig.from_json({"model": "mlp:tiny"}) == PlanConfig("mlp:tiny")


def test_files(tmp_path):
    plan = drawn_plan(0)
    path = plan.write(tmp_path / "deep" / "plan.json")
    assert ParallelPlan.read(path) == plan
    with pytest.raises(ValueError, match="plan: expected a file"):
        ParallelPlan.read(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(ValueError, match="plan: expected JSON"):
        ParallelPlan.read(tmp_path / "text.json")


@given(SEEDS)
def test_other_versions_formats_and_keys_are_refused(seed):
    plan = drawn_plan(seed)
    data = plan.to_json()
    with pytest.raises(ValueError, match=r"version of the plan: expected 2, got 1; plan again"):
        ParallelPlan.from_json({**data, "version": 1})
    with pytest.raises(ValueError, match="format: expected 'blocks parallel plan'"):
        ParallelPlan.from_json({**data, "format": "tea"})
    with pytest.raises(ValueError, match=r"parallel plan: expected no further keys, got \['col"):
        ParallelPlan.from_json({**data, "colour": "red"})
    without = {key: value for key, value in data.items() if key != "notes"}
    with pytest.raises(ValueError, match=r"the keys \['notes'\] too, got the others alone$"):
        ParallelPlan.from_json(without)
    with pytest.raises(ValueError, match=r"too, got \['note', 'x'\]; did you mean notes\?"):
        ParallelPlan.from_json({**without, "note": [], "x": 1})
    with pytest.raises(ValueError, match="stage plan"):
        ParallelPlan.from_json({**data, "stages": [3]})


@given(SEEDS)
def test_plans_that_cannot_be_are_refused(seed):
    plan = drawn_plan(seed)
    stages, more = plan.stages, dataclasses.replace(plan.model, size=plan.model.size + 1)
    with pytest.raises(ValueError, match="stages: expected all"):
        dataclasses.replace(plan, model=more)
    if len(stages) > 1:
        with pytest.raises(ValueError, match="stages: expected one from layer 0"):
            dataclasses.replace(plan, stages=stages[::-1])
        same = tuple(dataclasses.replace(stage, mesh=stages[0].mesh) for stage in stages)
        with pytest.raises(ValueError, match="devices: expected each in one stage"):
            dataclasses.replace(plan, stages=same)
    with pytest.raises(ValueError, match="patterns: expected"):
        dataclasses.replace(plan, patterns={})
    with pytest.raises(ValueError, match="notes: expected texts"):
        dataclasses.replace(plan, notes=(1,))


@given(SEEDS)
def test_another_model_is_refused(seed):
    plan = drawn_plan(seed)
    other = dataclasses.replace(plan.model, digest=plan.model.digest + "x")
    plan.model.check_same("model", plan.model)
    with pytest.raises(ValueError, match=r"model of the plan: expected .* plan again"):
        plan.model.check_same("model", other)


def test_plans_load_without_planner_numpy_and_torch():
    code = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'highspy', 'transformers'): sys.modules[name] = None\n"
        "from recipes.plan.parallel_plan import ParallelPlan\n"
        "assert 'recipes.plan.search.search' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
