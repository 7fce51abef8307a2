"""Runs that follow a parallel plan train as runs that follow none."""

import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from blocks.pipeline import Kind, replay
from recipes.model import load_model
from recipes.plan.config import PlanConfig
from recipes.plan.parallel_plan import ParallelPlan
from recipes.train.__main__ import main
from recipes.train.checkpoint import CheckpointWriter, load_latest
from recipes.train.config import resolve
from recipes.train.model import model_config
from recipes.train.place import Place
from recipes.train.planned import follow_plan, parallel_plan
from recipes.train.planned_job import job_for
from recipes.train.planned_trainer import PlannedTrainer
from recipes.train.run import _settle, train
from recipes.train.trainer import Trainer
from recipes.train.verbs import traced_step
from recipes.train.windows import StepWindows
from tests.train.planned_runs import (
    CHANGED,
    NUM_STEPS,
    PLAIN,
    ROWS,
    TOKENS,
    assert_same,
    in_processes,
    joined,
    known_trace,
    plan_of,
    planned,
    report,
    text,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run's model is the one traced already."""
    monkeypatch.setattr("recipes.train.planned_job.traced_step", known_trace)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """What the run without a plan comes to, and what it came to on the way."""
    trainer = Trainer(PLAIN, text())
    first = report(trainer, CHANGED)
    return joined(first, report(trainer, NUM_STEPS - CHANGED))


SLOW = ("stages", "tensor", "both", "staged", "anything", "uneven")
NIGHTLY = [pytest.param(name, marks=pytest.mark.nightly) for name in SLOW]


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize("name", ["data", *NIGHTLY])
def test_losses_are_those_of_a_run_without_a_plan(
    name: str, alone: dict[str, Any], tmp_path: Path
) -> None:
    config = planned(name, tmp_path)
    found = in_processes(config, lambda t, _: report(t, NUM_STEPS))
    for one in found:
        assert one == found[0], "all devices agree"
        assert_same(one, alone)


@pytest.mark.usefixtures("one_trace")
@pytest.mark.parametrize(
    ("one", "other"),
    [("stages", "tensor"), pytest.param("staged", "anything", marks=pytest.mark.nightly)],
)
def test_a_run_goes_on_under_another_plan_and_without_one(
    one: str,
    other: str,
    alone: dict[str, Any],
    tmp_path: Path,
) -> None:
    first = planned(one, tmp_path)
    root = tmp_path / "checkpoints"

    def begin(trainer: PlannedTrainer, place: Place) -> dict[str, Any]:
        found = report(trainer, CHANGED)
        with CheckpointWriter(root, keep=2, ranks=place.ranks()) as writer:
            writer.save(trainer.checkpoint())
        return found

    before = in_processes(first, begin)[0]
    assert before["held_out"] == pytest.approx(alone["before"], rel=1e-5)

    def go_on(trainer: Trainer, place: Place) -> dict[str, Any]:
        stored = load_latest(root, ranks=place.ranks())
        assert stored is not None
        trainer.restore(stored)
        assert trainer.step == CHANGED
        return report(trainer, NUM_STEPS - CHANGED)

    second = planned(other, tmp_path)
    for after in in_processes(second, go_on):
        assert_same(joined(before, after), alone)
    plain = resolve(dataclasses.replace(PLAIN, microbatch=ROWS))
    assert_same(joined(before, go_on(Trainer(plain, text()), Place())), alone)


@pytest.mark.usefixtures("one_trace")
def test_a_plain_run_goes_on_under_a_plan(alone: dict[str, Any], tmp_path: Path) -> None:
    trainer = Trainer(PLAIN, text())
    before = report(trainer, CHANGED)
    with CheckpointWriter(tmp_path / "checkpoints", keep=2) as writer:
        writer.save(trainer.checkpoint())
    again = PlannedTrainer(planned("one", tmp_path), text())
    stored = load_latest(tmp_path / "checkpoints")
    assert stored is not None
    again.restore(stored)
    assert_same(joined(before, report(again, NUM_STEPS - CHANGED)), alone)
    assert set(again.checkpoint().tensors) == set(trainer.checkpoint().tensors)


@pytest.mark.usefixtures("one_trace")
def test_steps_are_traced(tmp_path: Path) -> None:
    config = planned("stages", tmp_path, trace="1:2")

    def work(trainer: PlannedTrainer, _: Place) -> None:
        windows = StepWindows(trainer, tmp_path)
        for step in range(3):
            with windows.around(step):
                trainer.train_step()

    in_processes(config, work)
    files = sorted(path.name for path in (tmp_path / "trace").rglob("*.jsonl"))
    assert files == ["step-000001-rank-0.jsonl", "step-000001-rank-1.jsonl"]
    trace = traced_step(tmp_path, None)
    kinds = Counter((event.action.kind, event.action.stage) for event in trace.events)
    assert all(
        kinds[kind, stage] == 2 for kind in (Kind.FORWARD, Kind.FULL_BACKWARD) for stage in (0, 1)
    )
    assert replay(trace).replayed.makespan > 0


@pytest.mark.usefixtures("one_trace")
def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    trainer = PlannedTrainer(planned("one", tmp_path), text())
    trainer.train_step()
    before = {name: tensor.clone() for name, tensor in trainer.state_tensors().items()}
    broken = trainer.replica.parameters["final_norm.weight"]
    kept = broken.detach().clone()
    with torch.no_grad():
        broken.fill_(float("inf"))
    trainer.train_step()
    assert (trainer.num_skipped_steps, trainer.step) == (1, 2)
    with torch.no_grad():
        broken.copy_(kept)
    for name, tensor in trainer.state_tensors().items():
        assert torch.equal(tensor, before[name]), name
    trainer.train_step()
    assert trainer.num_skipped_steps == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dp": 2}, "dp: expected 1 beside a plan, got 2; the plan decides it"),
        ({"microbatch": 4}, "microbatch: expected 2 beside a plan"),
        ({"slices": 2}, "slices: expected 1 with a parallel plan, got 2; planned stages take"),
        ({"optimizer": "muon"}, "optimizer: expected 'adamw', which the plan was made for"),
        ({"batch_size": 8}, "batch_size: expected 4, which the plan was made for, got 8"),
        ({"context_len": 32}, "context_len: expected 16, .* plan again with seq_len=32"),
        ({"dtype": "bfloat16"}, "dtype: expected 'float32', which the plan was made for"),
        ({"document_mask": True}, "document_mask: expected False with a parallel plan"),
        (
            {"num_layers": 3},
            "plan: expected one of this run's decoder, num_layers=3, got one of another model, "
            r"decoder:tiny,num_heads=4,num_kv_heads=2 \(num_layers=2\); the plan verb makes",
        ),
        ({"num_kv_heads": 4}, "num_kv_heads=4, got one of another model"),
        ({"tie_embeddings": False}, r"tie_embeddings=False, .* \(tie_embeddings=True\)"),
        (
            {"batch_size": 8, "context_len": 32, "num_layers": 3, "dp": 2},
            "^plan: .*; the plan is made for batch_size 4, not 8, context_len 16, not 32, too$",
        ),
        (
            {"batch_size": 8, "context_len": 32},
            "^batch_size: .*; plan again with batch_size=8 seq_len=32$",
        ),
    ],
)
def test_settings_that_do_not_go_with_the_plan(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        planned("data", tmp_path, **changes)


@pytest.mark.usefixtures("one_trace")
def test_plans_of_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = planned("data", tmp_path)
    plan = parallel_plan(config)
    assert plan is not None
    stranger = dataclasses.replace(plan, model=dataclasses.replace(plan.model, digest="other"))
    with pytest.raises(ValueError, match="model of the plan: expected made"):
        job_for(config, model_config(config, text().tokenizer), stranger)
    path = tmp_path / "other.json"
    path.write_text(json.dumps({"format": "blocks inference plan"}))
    with pytest.raises(ValueError, match="plan: expected one of the plan verb"):
        _settle(dataclasses.replace(PLAIN, plan=str(path)), None, None)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    arguments = ["--preset", "tiny", "optimizer=adamw", f"context_len={TOKENS}"]
    arguments += ["--plan", str(tmp_path / "data.json"), "--out", str(tmp_path / "run")]
    assert main([*arguments, "num_heads=4", "num_kv_heads=2"]) == 2
    said = capsys.readouterr().err
    assert "processes: expected 2, the plan's devices, got 3" in said
    assert main(arguments) == 2
    assert "plan: expected one of this run's decoder, num_heads=2" in capsys.readouterr().err


def test_a_plan_of_another_family_is_named_first() -> None:
    plan = plan_of("one")
    other = dataclasses.replace(
        plan,
        settings={**plan.settings, "model": "llama:8b", "batch_size": 64},
    )
    words = (
        f"plan: expected one of this run's decoder, got one of another model, llama:8b "
        rf"\({plan.model.size} layers as plans have them\); .* made for batch_size 64, not 4, too"
    )
    with pytest.raises(ValueError, match=words):
        follow_plan(PLAIN, other)


def test_a_plan_this_machine_has_no_room_for_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(plan: ParallelPlan) -> None:
        raise ValueError(f"no room for {plan.num_devices} devices")

    monkeypatch.setattr("recipes.train.run.check_here", full)
    monkeypatch.setattr("recipes.train.run.launch", lambda *_: pytest.fail("processes started"))
    path = plan_of("data").write(tmp_path / "data.json")
    with pytest.raises(ValueError, match="no room for 2 devices"):
        train(dataclasses.replace(PLAIN, plan=str(path)), out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"another model, decoder:tiny.* \(hidden_size=32\)"):
        train(dataclasses.replace(PLAIN, plan=str(path), hidden_size=64), out=tmp_path / "run")


def test_plans_are_read_once_and_again_when_they_change(tmp_path: Path) -> None:
    config = planned("data", tmp_path)
    first = parallel_plan(config)
    assert parallel_plan(config) is first
    assert isinstance(first, ParallelPlan)
    assert follow_plan(dataclasses.replace(config, lanes=None), first).microbatch == ROWS
    assert parallel_plan(PLAIN) is None


@pytest.mark.usefixtures("one_trace")
def test_a_whole_run_leaves_what_a_run_without_a_plan_leaves(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recipes.train.run.prepare_together", lambda *_: text())
    short = dataclasses.replace(
        PLAIN, num_steps=6, warmup_steps=1, checkpoint_every=3, log_every=1, eval_tokens=256
    )
    path = plan_of("one").write(tmp_path / "plan.json")
    config = dataclasses.replace(short, plan=str(path))
    found = train(config, out=tmp_path / "planned")
    expected = train(short, out=tmp_path / "plain")
    for got, want in zip(found.entries, expected.entries, strict=True):
        assert (got.step, got.learning_rate) == (want.step, want.learning_rate)
        assert got.loss == pytest.approx(want.loss, rel=1e-5)
    assert found.held_out.loss == pytest.approx(expected.held_out.loss, rel=1e-5)
    files = sorted(path.name for path in expected.model.iterdir())
    assert sorted(path.name for path in found.model.iterdir()) == files
    ours, theirs = (load_model(run.model, dtype=torch.float32) for run in (found, expected))
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-2, atol=1e-3)
    for path in (tmp_path / "planned" / "checkpoints").glob("step-00000006"):
        shutil.rmtree(path)
    again = train(dataclasses.replace(config, plan=None), out=tmp_path / "planned", resume=True)
    assert again.entries[-1].loss == pytest.approx(expected.entries[-1].loss, rel=1e-5)


def test_the_plan_verb_plans_for_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[PlanConfig] = []
    monkeypatch.setattr("recipes.plan.verbs.plan", lambda config, out: asked.append(config))
    arguments = ["plan", "--preset", "tiny", "max_corpus_bytes=60_000", "--cluster", "2xCPU"]
    arguments += ["--ask", "num_devices=2", "--out", str(tmp_path / "plan.json")]
    assert main([*arguments, "optimizer=adamw", "num_layers=5"]) == 0
    assert main([*arguments, "dtype=bfloat16"]) == 0
    assert main([*arguments, "window=8"]) == 2
    config, narrow = asked
    assert (config.batch_size, config.seq_len, config.num_devices) == (4, 64, 2)
    assert (config.dtype, config.optimizer) == ("float32", "adamw")
    assert config.model == "decoder:tiny,num_layers=5"
    assert (narrow.dtype, narrow.gradient_dtype, narrow.optimizer) == (
        "bfloat16",
        "float32",
        "muon",
    )
    assert main(["plan", "--preset", "tiny", "--ask", "num_devices=2"]) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["pp=2"], "error: pp: expected 1, got 2; the plan decides it"),
        (["microbatch=1"], "error: microbatch: expected None, got 1; the plan decides it"),
        (["--plan", "a.json"], "error: plan: expected None, got 'a.json'; the plan decides it"),
        (["--ask", "batch_size=2"], "got 'batch_size=2'; give it to the run, without --ask"),
        (["--ask", "model=mlp:tiny"], "got 'model=mlp:tiny'; give it to the run, without --ask"),
    ],
)
def test_the_plan_verb_refuses_what_the_run_would(
    settings: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "--preset", "tiny", "optimizer=adamw", "--cluster", "2xCPU"]
    assert main([*arguments, *settings]) == 2
    assert message in capsys.readouterr().err
