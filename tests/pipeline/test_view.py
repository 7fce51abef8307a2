"""Pictures: whole, well formed, in bounds, and without anything from outside."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from blocks.pipeline import UNMEASURED, Timeline, Trace, simulate, write_traces
from blocks.pipeline.schedules import SCHEDULES
from blocks.pipeline.view import Slider, figure, to_html, to_svg
from blocks.pipeline.view.__main__ import main
from blocks.pipeline.view.palette import NAMES, NUM_SHADES, colour, is_dark
from blocks.pipeline.view.scale import round_step, ticks
from tests.pipeline.test_replay import slanted
from tests.pipeline.traces import ran

SVG = "{http://www.w3.org/2000/svg}"


def both(name: str, num_ranks: int, num_slices: tuple[int, ...]) -> tuple[Timeline, Trace]:
    chunks = 2 if name in ("zb_v", "seq1f1b_interleaved") else 1
    schedule = SCHEDULES[name](num_ranks, num_slices, num_chunks=chunks)
    return simulate(schedule, slanted), ran(schedule, slanted, transfer_s=1e-4, noise=0.2)


def num_bars(root: ElementTree.Element) -> list[int]:
    """Bars of each panel."""
    return [
        sum(
            path.get("d", "").count("M")
            for group in panel.iter(f"{SVG}g")
            if group.get("class") == "bars"
            for path in group
        )
        for panel in root.iter(f"{SVG}g")
        if panel.get("class") == "panel"
    ]


@settings(max_examples=12, phases=[Phase.generate])
@given(
    st.sampled_from(["seq1f1b", "zb_v", "token_zero_bubble", "seq1f1b_interleaved"]),
    st.integers(1, 16),
    st.integers(1, 3),
    st.integers(640, 2000),
)
def test_an_svg_holds_every_action_inside_its_edges(
    name: str, num_ranks: int, num_slices: int, width: int
) -> None:
    plan, trace = both(name, num_ranks, (num_slices,) * num_ranks)
    root = ElementTree.fromstring(to_svg(figure(plan, trace), width=width))
    count = sum(map(len, trace.schedule.programs))
    assert num_bars(root) == [count, count]
    height = float(root.get("height", "0"))
    for text in root.iter(f"{SVG}text"):
        assert 0 <= float(text.get("x", "-1")) <= width
        assert 0 <= float(text.get("y", "-1")) <= height
    names = [text.text for text in root.iter(f"{SVG}text") if text.get("class") == "name"]
    rows = 2 + len(figure(plan, trace).memory)
    assert names == [f"rank {rank}" for rank in range(num_ranks)] * rows


def test_a_plan_or_a_trace_alone() -> None:
    plan, trace = both("seq1f1b", 2, (2, 2))
    assert num_bars(ElementTree.fromstring(to_svg(figure(plan)))) == [16]
    assert num_bars(ElementTree.fromstring(to_svg(figure(trace=trace)))) == [16]
    unknown = tuple(e._replace(live_bytes=UNMEASURED, cpu_ns=UNMEASURED) for e in trace.events)
    bare = figure(trace=dataclasses.replace(trace, events=unknown))
    assert [memory.unit for memory in bare.memory] == ["tokens"]
    assert "activations kept, in tokens" in to_svg(bare)
    other, _ = both("seq1f1b", 3, (2, 2))
    with pytest.raises(ValueError, match="a plan and a trace of the same ranks"):
        figure(other, trace)
    with pytest.raises(ValueError, match="a plan, a trace, or both, got neither"):
        figure()
    with pytest.raises(ValueError, match="width: expected at least 640 pixels, got 100"):
        to_svg(figure(plan), width=100)


def test_activations_are_kept_from_forward_to_backward() -> None:
    """The last rank of a 1F1B keeps one sequence, the first as many as there are ranks."""
    plan, _ = both("one_f_one_b", 4, (1,) * 8)
    (memory,) = figure(plan).memory
    assert [curve.peak for curve in memory.planned] == [4, 3, 2, 1]
    assert all(curve.amounts[-1] == 0 for curve in memory.planned)
    split, _ = both("zb_h1", 4, (1,) * 8)
    assert all(curve.amounts[-1] == 0 for curve in figure(split).memory[0].planned)


def test_planned_bytes_share_the_rows_of_measured_ones() -> None:
    plan, trace = both("seq1f1b", 2, (2, 2))
    planned = [[8.0] * len(program) for program in plan.schedule.programs]
    shown = figure(plan, trace, planned_bytes=planned)
    assert len(shown.memory) == 1
    assert "planned: line, measured: area" in to_svg(shown)
    with pytest.raises(ValueError, match="planned_bytes: expected 8 of a rank, got 7"):
        figure(plan, trace, planned_bytes=[row[1:] for row in planned])


def page_data(page: str) -> dict:
    found = re.search(r"const data = (\{.*\});\n", page)
    assert found is not None
    return json.loads(found[1])


def test_a_page_needs_nothing_from_outside() -> None:
    plan, trace = both("token_zero_bubble", 3, (2, 3))
    choices = [("0 s", plan), ("1 ms", simulate(plan.schedule, slanted, transfer=lambda _: 1e-3))]
    page = to_html(figure(plan, trace), sliders=[Slider("transfer", choices)], trace=trace)
    outside = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]|src=|@import|href=|url\((?!#)", outside)
    data = page_data(page)
    assert data["sliders"] == [[{"label": "0 s", "panel": 0}, {"label": "1 ms", "panel": 2}]]
    count = sum(map(len, trace.schedule.programs))
    assert [sum(map(len, panel["lanes"])) for panel in data["panels"]] == [count] * 3
    for panel in data["panels"]:
        for lane in panel["lanes"]:
            starts = [bar[0] for bar in lane]
            assert starts == sorted(starts), "the script searches lanes by halves"
    drawing = page[page.index("<svg") : page.index("</svg>") + len("</svg>")]
    assert num_bars(ElementTree.fromstring(drawing)) == [count] * 3


def test_what_a_run_says_of_itself_is_text() -> None:
    plan, trace = both("seq1f1b", 2, (2,))
    trace = dataclasses.replace(trace, meta={"device": "<script>alert(1)</script> & @script@"})
    shown = figure(plan, trace, title="</title><b>")
    sliders = [Slider("<i>", [("</script><i>", plan), ("1", plan)])]
    page = to_html(shown, trace=trace, sliders=sliders)
    assert "<script>alert" not in page
    assert page.count("<i>") == 1, "in the script alone, where it is text"
    assert page.count("<b>") == 0
    assert page.count("</script>") == 1
    assert "&amp; @script@" in page
    ElementTree.fromstring(to_svg(shown))


def test_sliders_that_do_not_fit() -> None:
    plan, trace = both("seq1f1b", 2, (2,))
    other, _ = both("seq1f1b", 3, (2,))
    with pytest.raises(ValueError, match="slider: expected 2 ranks, got 3"):
        to_html(figure(plan), sliders=[Slider("ranks", [("2", plan), ("3", other)])])
    with pytest.raises(ValueError, match="sliders: expected a figure with a plan"):
        to_html(figure(trace=trace), sliders=[Slider("ranks", [("2", plan)])])


def test_kinds_and_sequences_have_colours_of_their_own() -> None:
    every = [colour(kind, shade) for kind in NAMES for shade in range(NUM_SHADES)]
    assert len(set(every)) == len(every)
    assert {is_dark(kind, 0) for kind in NAMES} == {True, False}


@given(st.floats(1e-9, 1e9), st.integers(1, 20))
def test_steps_of_an_axis_are_round_and_few(span: float, num_steps: int) -> None:
    assert span / round_step(span, num_steps) <= num_steps * (1 + 1e-6)
    assert len(ticks(span, num_steps)) <= num_steps + 1


def test_the_command_draws_what_the_ending_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _, trace = both("seq1f1b", 2, (4, 4))
    cuts = ((0, 20, 36, 50, 64), (0, 16, 32, 48, 64))
    write_traces(tmp_path / "trace.jsonl", [dataclasses.replace(trace, bounds=cuts)])

    def run(*arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["view", *arguments])
        return main()

    for ending in ("html", "svg", "json"):
        output = tmp_path / f"step.{ending}"
        assert run(str(tmp_path / "trace.jsonl"), "-o", str(output)) == 0
        assert output.stat().st_size > 1000
    assert "replayed" in capsys.readouterr().out
    page = (tmp_path / "step.html").read_text()
    assert [name in page for name in ("transfer<input", "schedule<input", "slices<input")] == [
        True
    ] * 3
    assert run(str(tmp_path / "trace.jsonl"), "-o", str(output), "--step", "7") == 2
    assert "step: expected one of [0], got 7" in capsys.readouterr().err
    (tmp_path / "other.jsonl").write_text("hello\n")
    assert run(str(tmp_path / "other.jsonl"), "-o", str(output)) == 2
    assert "expected a line of JSON" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(str(tmp_path / "trace.jsonl"), "-o", str(tmp_path / "step.png"))


def test_pictures_and_replay_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import blocks.pipeline.view.__main__, blocks.pipeline.view as view\n"
        "from blocks.pipeline import SCHEDULES, simulate\n"
        "plan = simulate(SCHEDULES['seq1f1b'](2, (2, 2)), lambda action: 1)\n"
        "assert view.to_svg(view.figure(plan)).endswith('</svg>')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
