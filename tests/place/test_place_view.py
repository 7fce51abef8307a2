"""Pictures of placements: true to scale, whole, and with every name in them."""

import dataclasses
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blocks.sched.cluster_sim import Event, simulate
from blocks.sched.placement import Group, Placement
from blocks.sched.profile import Configuration, Decoder, Device, roofline_profile, single_pass
from blocks.sched.workload import gamma_workload
from recipes.place.planning import Curve, Point
from recipes.place.view import curve_charts, occupancy, placement_map
from recipes.place.view.occupancy import in_group
from recipes.place.view.placement_map import held

SIZE = Decoder(1e9, 16, 2048, 2**16)
DEVICE = Device("made up", 1e14, 1e12, 1e11, 1e-5, 1e-3)
EVEN = roofline_profile("w", SIZE, DEVICE, [(1, 1), (2, 1), (1, 2), (2, 2)])
UNEVEN = [
    dataclasses.replace(
        timing, weight_bytes=tuple(10**9 + stage for stage in range(timing.configuration.pp))
    )
    for timing in EVEN.timings
]
PROFILES = {
    "<chat>": dataclasses.replace(EVEN, timings=tuple(UNEVEN)),
    "rank": single_pass("rank", "made up", {(1, 1): [1.0], (2, 2): [1.0, 1.0]}, 3 * 10**9),
}
MEMORY = 8 * 10**9


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def words(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter() if element.tag.endswith("text")]


SHAPES = [(1, 1), (2, 1), (1, 2), (2, 2)]


def placement_of(shapes, counts) -> Placement:
    """Groups of these shapes on neighbouring devices; ``rank`` is hosted where it was timed."""
    groups, first = [], 0
    for (op, pp), count in zip(shapes, counts, strict=False):
        names = ("<chat>", "rank")[: count if op == pp else 1]
        devices = tuple(range(first, first + op * pp))
        groups.append(Group(devices, Configuration(op, pp), names, (4096, 0)[: len(names)]))
        first += op * pp
    return Placement(tuple(groups))


@given(
    st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4),
    st.tuples(*[st.integers(1, 2)] * 4),
    st.sampled_from([1, 2, 4, 8]),
)
@settings(max_examples=25)
def test_columns_are_filled_to_scale_and_devices_are_named(shapes, counts, devices_per_node):
    placement = placement_of(shapes, counts)
    num_devices = -(-(placement.num_devices + 1) // devices_per_node) * devices_per_node
    root = drawn(placement_map(placement, PROFILES, MEMORY, num_devices, devices_per_node))
    boxes = {}
    for element in root.iter():
        if element.tag.endswith("rect"):
            title = next(iter(element), None)
            if title is not None and title.text:
                boxes.setdefault(title.text, []).append(element)
    tall = float(next(iter(boxes.values()))[0].get("height", "nan"))
    for device in range(num_devices):
        assert any(text.startswith(f"device {device}:") for text in boxes)
    for group in placement.groups:
        for place, device in enumerate(group.devices):
            found = [e for t, es in boxes.items() if t.endswith(f"; device {device}") for e in es]
            expected = [one.bytes / MEMORY * tall for one in held(group, PROFILES, place)]
            heights = sorted(float(element.get("height", "nan")) for element in found)
            assert heights == pytest.approx(sorted(expected), abs=0.01)
    assert words(root).count("idle") == num_devices - placement.num_devices


def test_every_group_and_model_is_named():
    placement = placement_of([(2, 2), (1, 1)], [2, 2])
    root = drawn(placement_map(placement, PROFILES, MEMORY, 8, 8))
    assert {"group 0: 2 x 2", "group 1: 1 x 1", "node 0", "<chat>", "rank"} <= set(words(root))


def test_a_device_holds_what_its_stage_weighs():
    group = Group((0, 1, 2, 3), Configuration(2, 2), ("<chat>",), (1000,))
    timing = PROFILES["<chat>"].timing((2, 2))
    for place, stage in enumerate((0, 0, 1, 1)):
        weights, rooms = held(group, PROFILES, place)
        assert weights.bytes == timing.weight_bytes[stage] == 10**9 + stage
    assert rooms.bytes == 1000 * timing.kv_bytes_per_token


@given(st.integers(0, 2**32), st.floats(1, 8))
@settings(max_examples=15)
def test_lanes_hold_all_the_seconds_of_all_requests(seed, rate):
    profiles = {name: single_pass(name, "CPU", {(1, 1): [0.3]}, 1) for name in "ab"}
    placement = Placement.equal_groups(2, Configuration(1, 1), [["a"], ["a", "b"]])
    rng = np.random.default_rng(seed)
    workload = gamma_workload([rate, 1.0], 2.0, 20.0, rng, "ab", 1.0)
    outcome = simulate(placement, profiles, workload)
    edges_s = np.linspace(0, 20, 33)
    for group in (0, 1):
        mine = (outcome.group == group) & outcome.finished
        inside = np.minimum(outcome.answered_s[mine], 20) - workload.arrival_s[mine]
        lane = in_group(outcome, group, edges_s)
        assert float((lane * np.diff(edges_s)).sum()) == pytest.approx(float(inside.sum()))
        assert lane.min() >= -1e-9
    root = drawn(occupancy(outcome, [Event(5.0, "down", 1), Event(9.0, "up", -1)]))
    tips = [element.text or "" for element in root.iter() if element.tag.endswith("title")]
    assert "group 1 is down from 5 to 9 s" in tips
    assert {"group 0", "group 1", "1 x 1"} <= set(words(root))
    missed = sum(int(tip) for tip in tips if tip.isdigit())
    assert missed == int((~outcome.met).sum())


def test_requests_without_a_group_have_a_lane():
    profiles = {name: single_pass(name, "CPU", {(1, 1): [0.3]}, 1) for name in "ab"}
    placement = Placement.equal_groups(1, Configuration(1, 1), [["a"]])
    workload = gamma_workload([1.0, 1.0], 1.0, 20.0, np.random.default_rng(0), "ab", 1.0)
    assert "no group" in words(drawn(occupancy(simulate(placement, profiles, workload))))


SHARES = st.floats(0, 1)


@given(st.lists(st.tuples(SHARES, SHARES), min_size=1, max_size=5), st.integers(1, 4))
def test_charts_have_every_point_where_it_belongs(rows, num_curves):
    points = tuple(
        Point(float(at), {"this placement": ours, "selective replication": other})
        for at, (ours, other) in enumerate(rows)
    )
    shown = tuple(Curve("rate", f"axis {at}", 0.0, points) for at in range(num_curves))
    root = drawn(curve_charts(shown))
    assert {f"axis {at}" for at in range(num_curves)} <= set(words(root))
    circles = [e for e in root.iter() if e.tag.endswith("circle") and len(e)]
    assert len(circles) == num_curves * len(rows)
    for circle, (ours, _) in zip(circles, rows, strict=False):
        assert f"this placement: {ours:.2%} at" in (circle[0].text or "")
    heights = [float(circle.get("cy", "nan")) for circle in circles[: len(rows)]]
    ranked = sorted(range(len(rows)), key=lambda at: rows[at][0], reverse=True)
    assert [heights[at] for at in ranked] == sorted(heights)


def test_a_chart_in_a_file_brings_its_colours_for_light_and_dark():
    point = Point(1.0, {"this placement": 0.5})
    lone = curve_charts([Curve("rate", "axis", 1.0, (point,))])
    assert "prefers-color-scheme: dark" in lone
    used = set(re.findall(r"var\((--\w+)\)", lone))
    assert used <= set(re.findall(r"(--\w+):", lone))
