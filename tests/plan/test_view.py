"""The page of a plan: well formed, complete, and true to the numbers of the plan."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from blocks.pipeline.view.scale import bytes_text
from blocks.sharding import Mesh
from recipes.plan import verbs
from recipes.plan.config import PlanConfig
from recipes.plan.stage_plan import ParameterPlacement
from recipes.plan.view import device_map, memory_bars, plan_page
from recipes.plan.view.explain import Reason, reason_lines
from recipes.plan.view.parameter_tiles import parameter_tiles
from recipes.plan.view.predicted_step import predicted_step
from tests.plan.plans import drawn_plan

SEEDS = range(12)


@pytest.mark.parametrize("seed", SEEDS)
def test_page_is_well_formed_and_names_what_the_plan_holds(seed):
    plan = drawn_plan(seed)
    page = plan_page(plan, devices_per_node=4, memory_bytes=8e9)
    assert page.startswith("<!doctype html>")
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")  # needs no network
    said = re.findall(r"<summary>patterns? (.*?): layers? (.*?)</summary>", page)
    assert sorted(name for names, _ in said for name in names.split(", ")) == sorted(plan.patterns)
    for number in range(plan.model.size):
        assert any(number in _numbers(layers) for _, layers in said), number
    for note in plan.notes:
        assert note in page


@pytest.mark.parametrize("seed", SEEDS)
def test_every_device_has_the_number_of_its_stage(seed):
    plan = drawn_plan(seed)
    drawn = ElementTree.fromstring(device_map(plan, 4))
    numbers = [e.text for e in drawn.iter() if e.get("class") == "on"]
    expected = [str(at) for at, stage in enumerate(plan.stages) for _ in stage.mesh.ranks]
    assert sorted(filter(None, numbers)) == sorted(expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_bars_are_as_long_as_what_they_stand_for(seed):
    plan = drawn_plan(seed)
    drawn = ElementTree.fromstring(memory_bars(plan))
    bars = [e for e in drawn.iter() if e.tag.endswith("rect") and e.get("height") == "18"]
    widths: dict[str, float] = {}
    for bar in bars:
        if bar.get("width") != "6.00":
            y = bar.get("y", "")
            widths[y] = widths.get(y, 0.0) + float(bar.get("width", "nan"))
    peaks = [stage.predicted.peak_bytes for stage in plan.stages]
    for width, peak in zip(widths.values(), peaks, strict=True):
        assert width / max(widths.values()) == pytest.approx(peak / max(peaks), abs=1e-3)


@pytest.mark.parametrize("share", [1e-5, 0.5])
def test_bars_are_seen_however_little_of_a_device_they_are(share):
    plan = drawn_plan(1)
    drawn = ElementTree.fromstring(memory_bars(plan, plan.peak_bytes / share))
    rects = [e for e in drawn.iter() if e.tag.endswith("rect") and e.get("height") == "18"]
    assert max(float(rect.get("x", 0)) + float(rect.get("width", 0)) for rect in rects) > 300
    assert "a device" in "".join(drawn.itertext())


def test_pages_show_the_memory_that_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plan = drawn_plan(1)
    memory_gib = plan.peak_bytes / 2**29
    config = PlanConfig("mlp", "8xA100", memory_gib=memory_gib)
    monkeypatch.setattr(verbs, "_read_here", lambda path: (plan, config))
    verbs.show(tmp_path / "plan.json", tmp_path / "plan.html")
    assert f">{bytes_text(memory_gib * 2**30)} a device<" in (tmp_path / "plan.html").read_text()


def _numbers(layers: str) -> set[int]:
    """
    >>> _numbers("0, 2 to 4")
    {0, 2, 3, 4}
    """
    runs = [[int(end) for end in run.split(" to ")] for run in layers.split(", ")]
    return {number for run in runs for number in range(run[0], run[-1] + 1)}


def test_a_step_is_drawn_with_stages_in_its_rows():
    plan = drawn_plan(1)
    told, drawn = predicted_step(plan)
    names = [e.text for e in ElementTree.fromstring(drawn).iter() if e.get("class") == "name"]
    assert names == [f"stage {at}" for at in range(len(plan.stages))]
    many = dataclasses.replace(plan, num_microbatches=100)
    assert "drawn with 16 of 100 microbatches" in predicted_step(many)[0]
    assert "drawn with" not in told or plan.num_microbatches > 16


def test_parameters_that_are_cut_alike_share_a_row():
    placed = ParameterPlacement("R", "S(0)", "S(0)")
    alone = ParameterPlacement("S(1)", "S(1)", "S(1)")
    meshes = [Mesh.of(x=4), Mesh.of(x=2)]
    drawn = parameter_tiles({"a": placed, "b": alone, "c": placed}, meshes)
    root = ElementTree.fromstring(drawn)
    tiles = [e for e in root.iter() if e.tag.endswith("rect") and e.get("height") == "34"]
    assert len(tiles) == 6
    assert "axis x of 4 or 2" in "".join(root.itertext())


def test_columns_of_explained_choices_are_as_wide_as_they_need():
    long = "layers.*.attention.experts.*.gate_projection.weight " * 2
    reasons = [Reason("mm", "in", 1e-4, "-", 2e-4), Reason(long, "in|column#1", 12.5, "-", 13.0)]
    assert {line.index(" ms; ") for line in reason_lines(reasons)} == {len(long) + 26}
