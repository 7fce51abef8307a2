"""The page of a plan: well formed, complete, and true to the numbers of the plan."""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from blocks.pipeline.view.scale import bytes_text
from recipes.plan import verbs
from recipes.plan.config import PlanConfig
from recipes.plan.view import device_map, memory_bars, plan_page
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
    for name in plan.patterns:
        assert f"<summary>{name}: " in page
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
