"""``python -m recipes.plan``: its verbs on a small model, and what it says to bad input."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.plan.config import PlanConfig
from recipes.plan.parallel_plan import ParallelPlan
from recipes.plan.settings import cluster_of, override

ROOT = Path(__file__).parents[2]
SMALL = ["num_devices=4", "batch_size=32", "workers=1", "microbatch_choices=2", "dtype=float32"]
FLAT = ["mesh_axes=1", "max_stages=1", *SMALL]
OWN = [text for text in FLAT if not text.startswith("dtype")]
"""For factories, which make inputs of their own dtype."""
CALLS: dict[str, list[str]] = {
    "plan": ["mlp:tiny", "--cluster", "8xA100", *FLAT, "--out", "a.json", "--page", "a.html"],
    "factory": ["tests.plan.test_commands:factory", *OWN, "--out", "own.json"],
    "explain": ["explain", "a.json"],
    "pin": ["pin", "a.json", "layers.*.weight=S(1)", "--out", "pinned.json"],
    "whatif": ["whatif", "a.json", "batch_size=4096", "--out", "large.json"],
    "diff": ["diff", "a.json", "pinned.json"],
    "same": ["diff", "a.json", "a.json"],
    "show": ["show", "a.json"],
    "show page": ["show", "a.json", "--out", "b.html"],
    "piped": [
        *("gpt2:tiny", *SMALL, "batch_size=8", "num_microbatches=4", "recompute=true"),
        *("mesh_axes=1", "max_stage_devices=2", "--out", "piped.json"),
    ],
    "run": ["run", "a.json", "--steps", "2", "--compare"],
    "run piped": ["run", "piped.json", "--steps", "2", "--compare"],
    "run forked": ["run", "piped.json", "--steps", "1", "--how", "forks", "--compare"],
    "run own": ["run", "own.json", "--steps", "1", "--compare"],
    "module alone": ["own:factory", *OWN],
    "no forward": ["tests.plan.test_commands:five_columns", *OWN],
    "no loss": ["tests.plan.test_commands:no_loss", *OWN],
    "pin of two": ["pin", "a.json", "layers.*.weight=S(0)R"],
    "pin of none": ["pin", "a.json", "layers.*.weight="],
    "strange choice": ["run", "strange choice.json"],
    "table by hand": ["run", "table by hand.json"],
    "piped by hand": ["run", "piped by hand.json"],
    "perhaps again": ["show", "perhaps again.json"],
    "endless devices": ["show", "endless devices.json"],
    "endless seconds": ["show", "endless seconds.json"],
    "page folder": ["show", "a.json", "--out", "."],
    "no steps": ["run", "a.json", "--steps", "0"],
    "no dtype": ["mlp:tiny", "dtype=int64"],
    "same rows": ["tests.plan.test_commands:four_rows", *OWN],
    "no dict": ["tests.plan.test_commands:no_keywords", *OWN],
    "branch": ["tests.plan.test_commands:branching", *OWN],
    "damaged settings": ["show", "damaged settings.json"],
    "no settings": ["explain", "no settings.json"],
    "text for number": ["show", "text for number.json"],
    "no choices": ["explain", "no choices.json"],
    "no schedule": ["show", "no schedule.json"],
    "odd microbatches": ["run", "odd microbatches.json"],
    "far device": ["show", "far device.json"],
    "another model": ["explain", "another model.json"],
    "another cluster": ["show", "another cluster.json"],
    "changed cluster": ["run", "changed cluster.json"],
    "no axis": ["pin", "a.json", "layers.*.weight=S(7)"],
    "no torchrun": ["run", "a.json", "--how", "torchrun"],
    "one machine": [
        "gpt2:tiny",
        "--cluster",
        "2xCPU",
        "batch_size=8",
        "workers=1",
        "dtype=float32",
        "--out",
        "machine.json",
    ],
    "model last": [*FLAT, "mlp:tiny", "--cluster", "8xA100", "--out", "last.json"],
    "plan last": ["whatif", "batch_size=32", "last.json"],
    "pinned last": ["pin", "layers.*.weight=S(1)", "last.json"],
    "no model": ["lama:8b"],
    "settings alone": ["batch_size=8"],
    "no length": ["mlp:tiny", *FLAT, "seq_len=128"],
    "no table length": ["dlrm:tiny", *FLAT, "seq_len=128"],
    "own length": ["tests.plan.test_commands:factory", *OWN, "seq_len=128"],
    "own dtype": ["tests.plan.test_commands:factory", *FLAT],
    "raises": ["os.path:join"],
    "endless nodes": ["mlp:tiny", "num_nodes=999999999"],
    "no requests": ["inference", "mlp:tiny"],
    "no factory": ["tests.plan.test_commands:nothing", *OWN],
    "no cluster": ["mlp:tiny", "--cluster", "nowhere.json"],
    "no key": ["mlp:tiny", "batch=3"],
    "no plan": ["explain", "none.json"],
    "no pin": ["pin", "a.json", "layers"],
    "no memory": ["mlp:tiny", *FLAT, "memory_gib=0.0000001"],
    "lone stages": ["mlp:tiny", *FLAT, "max_stage_devices=1"],
    "few layers": ["mlp:tiny", *SMALL, "num_devices=64", "max_stage_devices=1"],
    "folder": ["mlp:tiny", *FLAT, "--out", "."],
    "no folder": ["mlp:tiny", *FLAT, "--page", "a.json/page.html"],
    "no folder for serving": ["inference", "decoder:tiny", "--profile", "a.json/a.profile"],
    "no folder for measures": ["calibrate", "--out", "a.json/here.json"],
}
CODE = """
import contextlib, io, json, sys
sys.path[:0] = [{root!r}, ""]
from recipes.plan.__main__ import main
from tests.plan.test_commands import damage
found = {{}}
for name, arguments in json.loads(sys.stdin.read()).items():
    out, err = io.StringIO(), io.StringIO()
    damage(name)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    found[name] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(found))
"""


def factory(rows: int) -> tuple[Any, tuple, dict]:
    """What the documentation calls a factory."""
    import torch

    layers = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: torch.Tensor, times: int, how: str) -> torch.Tensor:
            return times * getattr(self.layers(x).square(), how)()

    return Loss(), (torch.rand(rows, 8), 2), {"how": "sum"}


def four_rows(rows: int) -> tuple[Any, tuple, dict]:
    """A factory that forgets what it is asked for."""
    return factory(4)


def five_columns(rows: int) -> tuple[Any, tuple, dict]:
    """A factory whose inputs are not what its model takes."""
    import torch

    return factory(rows)[0], (torch.rand(rows, 5), 2), {"how": "sum"}


def no_loss(rows: int) -> tuple[Any, tuple, dict]:
    """A factory of a model that returns what it computes."""
    import torch

    return torch.nn.Linear(8, 8), (torch.rand(rows, 8),), {}


def no_keywords(rows: int) -> Any:
    """A factory without the third of its results."""
    return (*factory(rows)[:2], None)


def branching(rows: int) -> tuple[Any, tuple, dict]:
    """Of a model that cannot be traced."""
    import torch

    class Branch(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x).sum()
            return y if y > 0 else -y  # depends on values

    return Branch(8, 8), (torch.rand(rows, 8),), {}


def damage(name: str) -> None:
    """Write a plan that is not right under a name of ``DAMAGES``."""
    if name in DAMAGES:
        source = "piped.json" if name.startswith("piped") else "a.json"
        data = json.loads(Path(source).read_text())
        DAMAGES[name](data)
        Path(f"{name}.json").write_text(json.dumps(data))


def _first_of(data: dict[str, Any], part: str, text: str) -> None:
    entries = next(p[part] for p in data["patterns"].values() if p.get(part))
    entries[next(iter(entries))] = text


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "damaged settings": lambda data: data["settings"].update(colour="red"),
    "no settings": lambda data: data["settings"].clear(),
    "text for number": lambda data: data["predicted"].update(step_s="soon"),
    "no choices": lambda data: data["patterns"]["A"]["choices"].clear(),
    "no schedule": lambda data: data.update(schedule="tea"),
    "odd microbatches": lambda data: data.update(num_microbatches=5),
    "strange choice": lambda data: _first_of(data, "choices", "tea"),
    "table by hand": lambda data: _first_of(data, "parameters", "S(1) / S(1) / R"),
    "piped by hand": lambda data: data["boundaries"][0].update(placements=["S(1)", "S(1)"]),
    "perhaps again": lambda data: data["stages"][0].update(recompute="perhaps"),
    "endless devices": lambda data: data["stages"][0].update(devices="0-99999999999"),
    "endless seconds": lambda data: data["predicted"].update(step_s=float("inf")),
    "far device": lambda data: data["stages"][0].update(devices="0-2,7"),
    "another model": lambda data: data["settings"].update(model="mlp:alpa"),
    "another cluster": lambda data: data["settings"].update(cluster="8xH100"),
    "changed cluster": lambda data: data["cluster"].update(digest="0" * 12),
}

Said = dict[str, tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("plans")
    (found / "own.py").write_text("from tests.plan.test_commands import factory\n")
    return found


@pytest.fixture(scope="module")
def said(folder: Path) -> Said:
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(root=str(ROOT))],
        input=json.dumps(CALLS),
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: tuple(one) for name, one in json.loads(done.stdout).items()}


def test_a_plan_is_printed_written_and_drawn(said: Said, folder: Path):
    code, out, err = said["plan"]
    assert (code, err) == (0, "")
    for words in ("tracing mlp:tiny", "strategies on 1x4", "predicted, bound", "node   0"):
        assert words in out
    plan = ParallelPlan.read(folder / "a.json")
    assert plan.num_devices == 4
    assert (folder / "a.json").stat().st_size < 200_000
    assert "<html" in (folder / "a.html").read_text()


def test_models_of_the_user_are_planned(said: Said, folder: Path):
    assert said["factory"][0] == 0, said["factory"]
    plan = ParallelPlan.read(folder / "own.json")
    lies = {name for pattern in plan.patterns.values() for name in pattern.parameters}
    assert lies == {f"layers.{at}.{kind}" for at in (0, 2) for kind in ("weight", "bias")}
    assert said["module alone"][0] == 0, said["module alone"]


def test_words_come_in_any_order(said: Said, folder: Path):
    assert said["model last"][0] == 0, said["model last"]
    assert ParallelPlan.read(folder / "last.json") == ParallelPlan.read(folder / "a.json")
    assert said["plan last"][:2] == (0, said["plan last"][1])
    assert said["plan last"][1].endswith("the plan stays the same\n")
    assert "setting pins:" in said["pinned last"][1]


def test_choices_are_explained(said: Said):
    code, out, _ = said["explain"]
    assert code == 0
    assert "would take" in out
    assert "no plan takes less than" in out


def test_pins_and_other_settings_plan_again(said: Said, folder: Path):
    assert said["pin"][0] == said["whatif"][0] == 0
    pinned = ParallelPlan.read(folder / "pinned.json")
    weights = [
        places.parameter
        for pattern in pinned.patterns.values()
        for name, places in pattern.parameters.items()
        if name == "layers.*.weight"
    ]
    assert weights
    assert set(weights) == {"S(1)"}
    assert "setting batch_size: 32 -> 4096" in said["whatif"][1]
    assert ParallelPlan.read(folder / "large.json").settings["batch_size"] == 4096


def test_differences_and_pictures(said: Said, folder: Path):
    assert "setting pins:" in said["diff"][1]
    assert said["same"][1] == "the plans do the same\n"
    assert "layers.*.weight" in said["show"][1]
    assert "<html" in (folder / "b.html").read_text()


@pytest.mark.parametrize("case", ["run", "run piped", "run forked", "run own"])
def test_planned_steps_are_those_of_one_device(said: Said, case: str):
    code, out, err = said[case]
    assert code == 0, err
    assert "step     1/" in out
    assert out.index("devices as ") < out.index("step     1/") < out.index("the same on one")
    assert float(out.rsplit(" ", 1)[1]) < 1e-5


def test_a_machine_plans_for_itself_and_torchrun_does_as_planned(said: Said, folder: Path):
    assert said["one machine"][0] == 0, said["one machine"][
        2
    ]  # a file without a link between nodes
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run = ["-m", "recipes.plan", "run", "machine.json", "--how", "torchrun", "--compare"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", *run],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.rpartition("apart by ")[2]) < 1e-3
    assert [done.stdout.count(f"step     {at}/3  loss") for at in (1, 2, 3)] == [1, 1, 1]


def test_pipelines_that_repeat_their_forward_are_planned(said: Said, folder: Path):
    plan = ParallelPlan.read(folder / "piped.json")
    assert said["piped"][0] == 0
    assert len(plan.stages) > 1
    assert all(stage.recompute for stage in plan.stages)
    assert any(" again" in name for p in plan.patterns.values() for name in p.choices)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no model", "got 'lama:8b'; did you mean llama:8b"),
        ("settings alone", "error: model: expected family:size or package.module:factory, got"),
        ("no length", "error: seq_len: expected none: inputs of mlp:tiny have rows alone, got 128"),
        ("no table length", "seq_len: expected none: inputs of dlrm:tiny have rows alone, got 128"),
        ("own length", "error: seq_len: expected none with tests.plan.test_commands:factory"),
        ("own dtype", "which makes its own inputs, got float32; change the factory"),
        ("raises", "error: TypeError: expected str, bytes or os.PathLike object, not int; while "),
        ("endless nodes", "error: num_nodes: expected at most 1,000,000 devices in all, got 9999"),
        ("no requests", "error: model: expected a language model"),
        ("no factory", "error: model: expected package.module:factory"),
        ("no cluster", "error: cluster: expected a cluster file"),
        ("no key", "did you mean batch_size?"),
        ("no plan", "error: plan: expected a file that recipes.plan wrote"),
        ("no forward", "while tracing "),
        ("no loss", "let it return its loss"),
        ("pin of two", "error: pins: expected 1 placements, one for each axis of a mesh"),
        ("pin of none", "error: pin: expected NAME=PLACEMENTS"),
        ("strange choice", "error: choice of "),
        ("table by hand", "as its choices have it, got S(1) / S(1) / R; a plan is changed by"),
        ("piped by hand", "error: boundaries of the plan: expected those that its choices have"),
        ("perhaps again", "error: recompute of a stage: expected true or false, got 'perhaps'"),
        ("endless devices", "error: devices: expected runs of 1 to 1000000"),
        ("endless seconds", "error: step_s: expected a finite number of at least 0, got inf"),
        ("page folder", "error: out: expected a file to write, got the folder ."),
        ("no steps", "error: num_steps: expected a positive whole number, got 0"),
        ("no dtype", "error: dtype: expected a floating point dtype of torch, got 'int64'"),
        ("same rows", "make inputs of as many rows as are asked for"),
        ("no dict", "expected (module, a tuple, a dict), got (Loss, tuple, NoneType)"),
        ("damaged settings", "error: settings: expected a model and fields of PlanConfig"),
        ("no settings", "fields of PlanConfig, got []; plan again"),
        ("text for number", "error: step_s: expected a finite number of at least 0, got 'soon'"),
        ("no choices", "expected one in the plan, got none"),
        ("no schedule", "error: schedule: expected one of"),
        (
            "odd microbatches",
            "error: num_microbatches: expected a divisor of batch_size=32, got 5; such as 4 or 8",
        ),
        ("far device", "error: devices: expected numbers below 4, got 7"),
        ("another model", "error: model of the plan: expected mlp:tiny"),
        ("another cluster", "got 8xH100 (4, "),
        ("changed cluster", "plan again, or load what it was made for"),
        ("no axis", "expected one of ['R', 'S(0)', 'S(1)'], got S(7)"),
        ("no torchrun", " -m recipes.plan run PLAN --how torchrun"),
        ("no pin", "error: pin: expected NAME=PLACEMENTS"),
        ("no memory", "KiB, got 107 B; "),
        ("no memory", "too few for stage 0 of 1 (layers 0-"),
        ("no memory", "in flight, "),
        ("no memory", " or use more devices"),
        (
            "lone stages",
            "error: stages: expected 4 or more to use all 4 devices, at most 1 device ",
        ),
        ("lone stages", "in each, got at most 1, max_stages=1; raise max_stages=1, raise max_st"),
        (
            "few layers",
            "error: stages: expected 64 or more to use all 64 devices, at most 1 device",
        ),
        (
            "few layers",
            ", one for each layer; raise max_stage_devices=1, plan for fewer devices or",
        ),
        ("folder", "error: out: expected a file to write, got the folder ."),
        ("no folder", "error: out: expected a file in a folder that can be written"),
        ("no folder for serving", "error: out: expected a file in a folder that can be written"),
        ("no folder for measures", "error: out: expected a file in a folder that can be written"),
    ],
)
def test_bad_input_exits_with_2_and_a_line(said: Said, case: str, message: str):
    code, _, err = said[case]
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("case", ["folder", "no folder", "no folder for serving"])
def test_files_that_cannot_be_written_are_refused_before_the_work(said: Said, case: str):
    assert said[case][1] == ""


def test_what_cannot_be_traced_is_named_and_tried_once(said: Said):
    code, out, err = said["branch"]
    assert code == 2
    assert out.count("tracing") == 1
    assert "test_commands.py:" in err
    assert "return y if y > 0 else -y  # depends on values" in err


def test_settings_take_the_kinds_of_their_fields():
    config = override(PlanConfig("m"), ["num_nodes=2", "recompute=true", "memory_gib=1.5"])
    assert (config.num_nodes, config.recompute, config.memory_gib) == (2, True, 1.5)
    assert override(config, ["num_nodes=none"]).num_nodes is None
    assert cluster_of(override(config, ["num_devices=2"])).num_devices == 4
    with pytest.raises(ValueError, match="num_nodes: expected a value of type int"):
        override(config, ["num_nodes=two"])
    with pytest.raises(ValueError, match="num_microbatches: expected a divisor of batch_size=64"):
        PlanConfig("m", num_microbatches=7)


@pytest.mark.parametrize("batch", [1, 7, 64, 1000])
def test_numbers_of_microbatches_divide_the_batch(batch: int):
    found = PlanConfig("m", batch_size=batch).microbatches()
    assert found == tuple(sorted(set(found)))
    assert 1 <= len(found) <= 5
    assert all(batch % count == 0 for count in found)
    assert {1, batch} <= set(found)
