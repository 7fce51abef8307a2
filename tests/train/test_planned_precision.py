"""Planned runs in bfloat16, and under Muon, train as runs without a plan."""

import dataclasses
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recipes.plan.families.decoder import TrainedDecoder
from recipes.plan.trace import trace
from recipes.train.checkpoint import CheckpointWriter, Part, load_latest
from recipes.train.config import TrainConfig
from recipes.train.joined_matrices import check_joined, joined_matrices
from recipes.train.model import model_config
from recipes.train.optim import parameter_groups
from recipes.train.place import Place
from recipes.train.planned import parallel_plan
from recipes.train.planned_replica import PlannedReplica
from recipes.train.planned_trainer import PlannedTrainer
from recipes.train.trainer import Trainer
from tests.train.planned_runs import (
    ASKED,
    PLAIN,
    ROWS,
    TOKENS,
    assert_same,
    in_processes,
    joined,
    known_trace,
    planned,
    report,
    text,
)

STEPS, CHANGED = 12, 7
NARROW = dataclasses.replace(ASKED, dtype="bfloat16")
ROUNDED = {"rel": 1e-3, "norms": 3e-2}
"""Tolerances in bfloat16: the run without a plan is as far from float32, 2.5e-4 and 1.2e-2."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run's model is the one traced already."""
    monkeypatch.setattr("recipes.train.planned_job.traced_step", known_trace)


def alone(num_steps: int = STEPS, **changes: Any) -> dict[str, Any]:
    return report(Trainer(dataclasses.replace(PLAIN, **changes), text()), num_steps)


def narrow(name: str, folder: Path, **changes: Any) -> TrainConfig:
    return planned(name, folder, NARROW, dtype="auto", **changes)


def apart(trainer: PlannedTrainer) -> set[torch.dtype]:
    """Dtypes of the parameters that are computed with, each the rounded one of the optimizer's."""
    found = set()
    assert isinstance(trainer.replica, PlannedReplica)
    for module in trainer.replica.pipeline.modules.values():
        for name, part in module.state.parameters.items():
            held, wide = trainer.replica.holdings[name], trainer.replica.parameters[name].detach()
            rounded = module.machine.cut(held.whole(wide), module.machine.spec(name))
            assert torch.equal(part, rounded.to(part.dtype)), name
            assert wide.dtype == torch.float32
            assert not torch.equal(wide, wide.to(torch.bfloat16).float()), name
            found.add(part.dtype)
        module.state.check_invariants()
    return found


def test_bfloat16_has_the_losses_of_a_run_without_a_plan(tmp_path: Path) -> None:
    config = narrow("data", tmp_path)
    assert config.dtype == "bfloat16"
    found = in_processes(config, lambda t, _: (report(t, STEPS), apart(t)))
    expected = alone(dtype="bfloat16")
    for one, dtypes in found:
        assert one == found[0][0], "all devices agree"
        assert_same(one, expected, **ROUNDED)
        assert dtypes == {torch.bfloat16}


def test_bfloat16_goes_on_under_another_plan_and_without_one(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    trainer = PlannedTrainer(narrow("one", tmp_path), text())
    before = report(trainer, CHANGED)
    with CheckpointWriter(root, keep=2) as writer:
        writer.save(trainer.checkpoint())
    kept = whole(trainer)
    through = joined(before, report(trainer, STEPS - CHANGED))

    def go_on(again: Trainer, place: Place) -> tuple[dict[str, Any], dict[str, Tensor]]:
        stored = load_latest(root, ranks=place.ranks())
        assert stored is not None
        again.restore(stored)
        if isinstance(again, PlannedTrainer):
            assert apart(again) == {torch.bfloat16}
        return report(again, STEPS - CHANGED), kept_by(stored.tensors)

    plain = dataclasses.replace(PLAIN, dtype="bfloat16", microbatch=2)
    found = [go_on(Trainer(plain, text()), Place())]
    found += in_processes(narrow("tensor", tmp_path), go_on)
    for after, stored in found:
        assert_same(joined(before, after), through, **ROUNDED)
        for name, tensor in kept.items():
            assert torch.equal(stored[name], tensor), name


def whole(trainer: PlannedTrainer) -> dict[str, Tensor]:
    """Of a run of one device what its checkpoint has to have, float32."""
    tensors = trainer.checkpoint().tensors
    return {
        name: (tensor.boxes[0].values if isinstance(tensor, Part) else tensor).clone()
        for name, tensor in tensors.items()
        if name.endswith(("norm.weight", "down.weight"))
    }


def kept_by(tensors: Any) -> dict[str, Tensor]:
    return {name: tensors[name] for name in tensors if name.startswith("model.")}


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("tensor", "float32", {"rel": 3e-4, "norms": 5e-3}),  # Muon rounds to bfloat16 inside
        ("one", "bfloat16", ROUNDED),
    ],
)
def test_muon_takes_whole_matrices(
    name: str, dtype: str, tolerance: dict[str, float], tmp_path: Path
) -> None:
    asked = dataclasses.replace(ASKED, dtype=dtype, optimizer="muon")
    config = planned(name, tmp_path, asked, dtype=dtype, optimizer="muon")
    found = in_processes(config, lambda t, _: report(t, STEPS))
    assert all(one == found[0] for one in found)
    assert_same(found[0], alone(dtype=dtype, optimizer="muon"), **tolerance)


def test_plans_price_the_gathers_of_the_matrices_that_muon_gets(tmp_path: Path) -> None:
    asked = dataclasses.replace(ASKED, optimizer="muon")
    config = planned("one", tmp_path, asked, optimizer="muon")
    model = TrainedDecoder(model_config(PLAIN, text().tokenizer))
    tokens = torch.zeros(ROWS, TOKENS, dtype=torch.int64)
    graph = trace(model, (), {"inputs": tokens, "labels": tokens}, optimizer="muon").graph
    priced = {
        graph.values[node.inputs[0]].name for node in graph.nodes if node.rule.gathered_itemsize
    }
    parameters = dict(model.named_parameters())
    matrices = {id(one) for one in parameter_groups(parameters, config)["matrices"]}
    assert priced == {name for name, one in parameters.items() if id(one) in matrices}


def test_muon_updates_rows_of_one_matrix_together(tmp_path: Path) -> None:
    """After a step from the same gradients: far closer than if the rows were matrices apart."""
    asked = dataclasses.replace(ASKED, optimizer="muon")
    ours = PlannedTrainer(planned("one", tmp_path, asked, optimizer="muon"), text())
    theirs = Trainer(dataclasses.replace(PLAIN, optimizer="muon"), text())
    assert len(ours.replica.joined) == 2 * PLAIN.num_layers
    for trainer in (ours, theirs):
        for _ in range(2):  # the first has no learning rate
            trainer.train_step()
    query = ours.replica.parameters["layers.0.attention.query.weight"]
    qkv = theirs.replica.parameters["layers.0.attention.qkv.weight"]
    rows = qkv[: len(query)]
    moved = (rows - rows.mean()).abs().max()
    assert (query - rows).abs().max() < 1e-3 * moved


def test_stages_that_part_a_matrix_are_refused_under_muon() -> None:
    model = model_config(PLAIN, text().tokenizer)
    parts = [f"layers.0.attention.{part}.weight" for part in ("query", "key", "value")]
    here = [parts[2], parts[0], "final_norm.weight"]
    assert joined_matrices(model, here) == ((parts[0], parts[2]),)

    def job(*stages: list[str]) -> Any:
        named = [types.SimpleNamespace(names=lambda _, s=stage: s) for stage in stages]
        return types.SimpleNamespace(stages=[types.SimpleNamespace(program=n) for n in named])

    check_joined(job(parts, ["final_norm.weight"]), model)
    with pytest.raises(ValueError, match=r"stage 1: expected .*query.weight, .* in one stage"):
        check_joined(job([], parts[1:]), model)


def test_plans_say_what_dtype_a_run_has(tmp_path: Path) -> None:
    assert planned("one", tmp_path, dtype="auto").dtype == "float32"
    assert parallel_plan(narrow("one", tmp_path)) is not None
    with pytest.raises(ValueError, match="dtype: expected 'bfloat16', which the plan was made for"):
        planned("one", tmp_path, NARROW, dtype="float32")
