"""The verbs, end to end, on a model of seconds."""

import dataclasses
import json

import pytest

from recipes.train import override, read_log, tiny
from recipes.train.__main__ import main
from recipes.train.calibrate import held_bytes
from recipes.train.config import resolve
from recipes.train.model import model_config
from recipes.train.order import build_schedule, row_bounds
from recipes.train.plan_file import PlanFile, follow
from recipes.train.prepare import prepare
from tests.train.pipelines import alone, in_one_process, in_threads

SETTINGS = ["num_steps=3", "max_corpus_bytes=40000", "vocab_size=300", "num_layers=2"]
SETTINGS += ["hidden_size=16", "intermediate_size=24", "eval_tokens=128"]


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    assert (
        main(["plan", "--preset", "tiny", "--out", str(path), "pp=2", "microbatch=2", *SETTINGS])
        == 0
    )
    return path


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """A run of one process with slices, two of its steps traced."""
    out = tmp_path_factory.mktemp("traced")
    settings = ["slices=2", "microbatch=2", "trace=1:3", "profile=0:1", *SETTINGS]
    assert main(["--preset", "tiny", "--out", str(out), *settings]) == 0
    return out


def test_a_plan_says_what_it_decided_and_why(plan, tmp_path, capsys):
    file = PlanFile.read(plan)
    assert file.plan.schedule.num_ranks == 2
    assert file.plan.bounds[0] == 0
    assert file.plan.bounds[-1] == tiny().context_len
    assert file.plan.makespan_s > 0
    assert float(file.timeline().makespan) == pytest.approx(file.plan.makespan_s)
    again = tmp_path / "again.json"
    file.write(again)
    assert PlanFile.read(again) == file
    assert main(["simulate", str(plan), "--out", str(tmp_path / "plan.html")]) == 0
    assert "<svg" in (tmp_path / "plan.html").read_text()
    assert "written" in capsys.readouterr().out


def test_memory_is_counted_in_bytes_and_capped_in_microbatches(tmp_path):
    settings = ["pp=2", "num_layers=3", "microbatch=1", *SETTINGS[:3], *SETTINGS[4:]]
    config = resolve(override(tiny(), [*settings, "layers_per_stage=2,1"]))
    model = model_config(config, prepare(config).tokenizer)
    rank = held_bytes(config, model)
    assert rank[0] > 2 * config.hidden_size * 4, "more than the outputs of two layers"
    twice = held_bytes(dataclasses.replace(config, microbatch=2), model)
    assert twice[0] == pytest.approx(2 * rank[0], rel=0.1)
    other = held_bytes(dataclasses.replace(config, layers_per_stage="1,2"), model)
    assert other[0] < rank[0]
    path = tmp_path / "plan.json"
    words = ["plan", "--preset", "tiny", "--max-sequences", "1", "--out", str(path)]
    assert main([*words, *settings, "layers_per_stage=2,1"]) == 0
    peaks = PlanFile.read(path).plan.peak_bytes
    assert rank[0] < max(peaks) <= max(rank) * config.context_len * (1 + 1e-9)


def test_a_run_follows_its_plan_bit_for_bit(plan):
    config = resolve(follow(override(tiny(), [f"plan={plan}", *SETTINGS])))
    assert build_schedule(config) == PlanFile.read(plan).plan.schedule
    assert row_bounds(config) == PlanFile.read(plan).plan.bounds
    data = prepare(config)
    single = dataclasses.replace(alone(config), plan=None)
    assert in_threads(config, data) == in_one_process(single, data)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("hidden_size=32", "plan again"),
        ("window=8", "plan again"),
        ("batch_size=8", "plan again"),
        ("pp=4", "the plan decides it"),
        ("schedule=gpipe", "the plan decides it"),
        ("tp=2", "the plan decides it"),
    ],
)
def test_a_plan_for_something_else_is_refused(plan, setting, words):
    with pytest.raises(ValueError, match=words):
        follow(override(tiny(), [f"plan={plan}", *SETTINGS, setting]))


def test_a_file_that_is_no_plan_is_one_clear_error(tmp_path, capsys):
    for text in ("", "{}", json.dumps({"plan": {}, "costs": [], "sizes": {}})):
        (tmp_path / "p.json").write_text(text)
        assert main(["simulate", str(tmp_path / "p.json")]) == 2
        assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("part", ["plan", "costs", "sizes"])
def test_a_plan_file_that_lacks_something_is_refused(plan, tmp_path, part, capsys):
    content = json.loads(plan.read_text())
    for bad in (content | {part: type(content[part])()}, {**content, part: 3}, content | {"x": 1}):
        (tmp_path / "p.json").write_text(json.dumps(bad))
        with pytest.raises(ValueError, match=r"plan|schedule"):
            follow(override(tiny(), [f"plan={tmp_path / 'p.json'}", *SETTINGS]))
        assert main(["simulate", str(tmp_path / "p.json")]) == 2
        assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["schedule=gpipe"], "schedule: expected none"),
        (["slices=4"], "slices: expected none"),
        (["plan=out/plan.json"], "plan: expected none"),
        (["tp=2"], "tp: expected 1"),
        (["--max-sequences", "nan"], "max_sequences: expected a positive number"),
    ],
)
def test_a_plan_refuses_what_it_decides_or_cannot_measure(words, error, capsys):
    assert main(["plan", "--preset", "tiny", "pp=2", *words]) == 2
    assert error in capsys.readouterr().err


def test_drawings_have_the_endings_they_can_have(plan, traced, tmp_path, capsys):
    for words in (["simulate", str(plan)], ["replay", str(traced)]):
        assert main([*words, "--out", str(tmp_path / "step.txt")]) == 2
        assert "a name that ends in .html or .svg" in capsys.readouterr().err
    assert main(["replay", str(traced / "model")]) == 2
    assert "train with trace=a:b first" in capsys.readouterr().err


def test_a_traced_step_is_replayed_and_compared(traced, tmp_path, capsys):
    assert main(["replay", str(traced), "--out", str(tmp_path / "step.html")]) == 0
    assert "step 2: measured" in capsys.readouterr().out
    assert "<svg" in (tmp_path / "step.html").read_text()
    assert main(["replay", str(traced), "--step", "1", "--out", str(tmp_path / "s.json")]) == 0
    assert json.loads((tmp_path / "s.json").read_text())["traceEvents"]
    capsys.readouterr()
    assert main(["compare", str(traced), str(traced), "--step", "1"]) == 0
    assert "losses:  all 4 equal" in capsys.readouterr().out
    assert main(["replay", str(traced), "--step", "9"]) == 2
    assert "one of [1, 2]" in capsys.readouterr().err


def test_the_profiler_writes_its_window(traced):
    events = json.loads((traced / "profile" / "rank-0.json").read_text())["traceEvents"]
    assert any("aten::mm" in str(event.get("name")) for event in events)


def test_an_exported_run_is_a_model_folder(traced, tmp_path):
    assert main(["export", str(traced), "--out", str(tmp_path / "hf")]) == 0
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "llama"


def test_the_log_says_how_well_the_machine_is_used(traced):
    last = read_log(traced / "log.jsonl")[-1]
    assert 0 < last["mfu"] < 1.5
    assert 50e6 < last["memory_bytes"] < 64e9
