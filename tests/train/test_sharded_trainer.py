"""Processes that share parameters: FSDP2 changes no bit, tensor parallel only rounding."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.train.checkpoint import CheckpointWriter, load_latest
from recipes.train.config import TrainConfig, resolve
from recipes.train.layout import check_layout, layout_of
from recipes.train.place import Place
from recipes.train.prepare import Prepared, prepare
from recipes.train.presets import tiny
from recipes.train.trainer import Trainer
from tests.forked import run_forked

NUM_STEPS = 3


def settings(**changes: Any) -> TrainConfig:
    small = {"max_corpus_bytes": 60_000, "context_len": 16, "lanes": 2, "num_heads": 4}
    small |= {"num_kv_heads": 2, "warmup_steps": 1, "microbatch": 1, "slices": 2}
    return dataclasses.replace(tiny(), **(small | changes))


@pytest.fixture(scope="module")
def data() -> Prepared:
    return prepare(settings())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def report(trainer: Trainer) -> dict[str, Any]:
    """Losses, norms, and the whole parameters, after some steps."""
    norms = []
    for _ in range(NUM_STEPS):
        trainer.train_step()
        norms.append(trainer.grad_norm)
    held_out = trainer.evaluate(64).loss
    whole = {}
    for name, parameter in trainer.replica.parameters.items():
        held = trainer.replica.holdings.get(name)
        tensor = parameter.detach()
        whole[name] = (tensor if held is None else held.whole(tensor)).numpy().copy()
    return {"losses": trainer.losses, "norms": norms, "held_out": held_out, "whole": whole}


def run(config: TrainConfig, data: Prepared) -> list[dict[str, Any]]:
    """What every process reports."""
    layout = layout_of(config)
    if layout.num_ranks == 1:
        return [report(Trainer(config, data))]

    def work(rank: int) -> dict[str, Any]:
        with Place.join(layout) as place:
            return report(Trainer(config, data, place=place))

    return run_forked(layout.num_ranks, work, timeout_s=120)


def whole_of(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Parameters of all processes; those with the same name are the same."""
    whole: dict[str, Any] = {}
    for one in found:
        for name, tensor in one["whole"].items():
            before = whole.setdefault(name, tensor)
            assert torch.equal(torch.from_numpy(before), torch.from_numpy(tensor)), name
    return whole


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "muon"},
        {"optimizer": "adamw", "tie_embeddings": False, "dtype": "bfloat16"},
        {"optimizer": "muon", "pp": 2, "schedule": "zb_v", "chunks": 2, "num_layers": 4},
    ],
    ids=["muon", "adamw in bfloat16", "zb_v"],
)
def test_fsdp_changes_no_bit(changes: dict[str, Any], data: Prepared) -> None:
    alone = {"pp": 1, "schedule": "auto", "chunks": 1}
    (expected,) = run(settings(**(changes | alone)), data)
    found = run(settings(dp=2, fsdp=True, **changes), data)
    for one in found:
        assert one["losses"] == expected["losses"]
        assert one["norms"] == expected["norms"]
        assert one["held_out"] == expected["held_out"]
    whole = whole_of(found)
    assert whole.keys() == expected["whole"].keys()
    for name, tensor in expected["whole"].items():
        assert torch.equal(torch.from_numpy(whole[name]), torch.from_numpy(tensor)), name


@pytest.mark.parametrize(
    "changes",
    [
        {"tp": 2, "dtype": "bfloat16"},
        {"tp": 4, "num_kv_heads": 2, "tie_embeddings": False},
        {"tp": 2, "pp": 2, "schedule": "zb_h1"},
        {"tp": 2, "dp": 2, "fsdp": True},
    ],
    ids=["in bfloat16", "more than kv heads", "in a pipeline", "with fsdp"],
)
def test_tensor_parallel_is_rounding(changes: dict[str, Any], data: Prepared) -> None:
    same = {"optimizer": "adamw", "learning_rate": 1e-3}
    slack = 200 if changes.get("dtype") == "bfloat16" else 1
    alone = {"pp": 1, "schedule": "auto", "tp": 1, "dp": 1, "fsdp": False}
    (expected,) = run(settings(**(same | changes | alone)), data)
    found = run(settings(**(same | changes)), data)
    for one in found:
        assert one["losses"] == found[0]["losses"]
        assert one["norms"] == found[0]["norms"]
        assert one["losses"] == pytest.approx(expected["losses"], rel=slack * 1e-5)
        assert one["norms"] == pytest.approx(expected["norms"], rel=slack * 1e-4)
        assert one["held_out"] == pytest.approx(expected["held_out"], rel=slack * 1e-5)
    whole = whole_of(found)
    assert whole.keys() == expected["whole"].keys()
    for name, tensor in expected["whole"].items():
        # AdamW's first steps follow the sign of gradients however small
        worst = (torch.from_numpy(whole[name]) - torch.from_numpy(tensor)).abs().mean()
        assert worst < (5e-4 if slack > 1 else 2e-5), name


def test_muon_makes_whole_matrices_orthogonal(data: Prepared) -> None:
    """A part made orthogonal by itself would be far from the whole's part after one step."""
    (expected,) = run(settings(), data)
    found = run(settings(tp=2), data)
    whole = whole_of(found)
    for name, tensor in expected["whole"].items():
        error = (torch.from_numpy(whole[name]) - torch.from_numpy(tensor)).norm()
        assert error < 0.05 * torch.from_numpy(tensor).norm(), name


def test_checkpoints_hold_whole_tensors(data: Prepared, tmp_path: Path) -> None:
    """Written by four processes that each have a part, read by one that has all, and back."""
    config = settings(tp=2, dp=2, fsdp=True)

    def write(rank: int) -> list[float]:
        with Place.join(layout_of(config)) as place:
            trainer = Trainer(config, data, place=place)
            trainer.train_step()
            with CheckpointWriter(tmp_path / "runs", keep=2, ranks=place.ranks()) as writer:
                writer.save(trainer.checkpoint())
            trainer.train_step()
            return trainer.losses

    def read(rank: int) -> list[float]:
        with Place.join(layout_of(config)) as place:
            trainer = Trainer(config, data, place=place)
            checkpoint = load_latest(tmp_path / "runs", ranks=place.ranks())
            assert checkpoint is not None
            trainer.restore(checkpoint)
            trainer.train_step()
            return trainer.losses

    through = run_forked(4, write, timeout_s=120)
    assert run_forked(4, read, timeout_s=120) == through
    checkpoint = load_latest(tmp_path / "runs")
    assert checkpoint is not None
    one = Trainer(settings(), data)
    for name, parameter in one.replica.parameters.items():
        stored = checkpoint.tensors[f"model.{name}"]
        assert stored.shape == parameter.shape
        with torch.no_grad():
            parameter.copy_(stored)
    one.step = 1
    one.train_step()
    assert one.losses[0] == pytest.approx(through[0][1], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tp": 3}, "tp: expected a divisor of num_heads"),
        ({"fsdp": True}, "dp: expected at least 2"),
        ({"tp": 2, "compile": True, "slices": 1}, "compile"),
    ],
)
def test_refusals(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_layout(resolve(settings(**changes)))
