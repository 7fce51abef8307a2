import dataclasses
import errno
import json
import math
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from recipes.train import TrainingDiverged, read_log, tiny, train
from recipes.train.__main__ import main
from recipes.train.checkpoint import (
    Checkpoint,
    CheckpointFailed,
    list_checkpoints,
    load_latest,
    save_checkpoint,
)
from recipes.train.log import TIMINGS
from recipes.train.prepare import prepare
from recipes.train.trainer import MAX_SKIPPED_IN_A_ROW, Trainer

SMALL = dataclasses.replace(tiny(), num_steps=24, checkpoint_every=7, log_every=4, eval_every=12)


def curve(out: Path) -> list[dict]:
    """The log without its clocks."""
    entries = read_log(out / "log.jsonl")
    return [{k: v for k, v in entry.items() if k not in TIMINGS} for entry in entries]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    return train(SMALL, out=out), out


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def test_loss_falls_and_a_model_is_left(unbroken):
    result, out = unbroken
    assert result.entries[-1].loss < result.entries[0].loss - 0.5
    assert result.num_tokens == SMALL.num_steps * SMALL.tokens_per_step
    assert result.num_skipped_steps == 0
    assert math.isfinite(result.held_out.bits_per_byte)
    assert {path.name for path in result.model.iterdir()} == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert result.plot is not None
    assert result.plot.stat().st_size > 1000
    assert len(list_checkpoints(out / "checkpoints")) == SMALL.keep_checkpoints


def test_the_same_run_twice_is_the_same_bit_for_bit(unbroken, tmp_path):
    train(SMALL, out=tmp_path)
    assert curve(tmp_path) == curve(unbroken[1])
    assert weights(tmp_path) == weights(unbroken[1])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_stopped_anywhere_goes_on_bit_for_bit(tmp_path, optimizer, monkeypatch):
    config = dataclasses.replace(SMALL, optimizer=optimizer, num_steps=16)
    train(config, out=tmp_path / "whole")
    step_once = Trainer.train_step

    class Stop(Exception):
        pass

    def stop_at_eleven(self):
        if self.step == 11:
            raise Stop
        step_once(self)

    monkeypatch.setattr(Trainer, "train_step", stop_at_eleven)
    with pytest.raises(Stop):
        train(config, out=tmp_path / "parts")
    monkeypatch.undo()
    torch.manual_seed(99)  # the process that goes on has another generator state
    train(config, out=tmp_path / "parts", resume=True)
    assert curve(tmp_path / "parts") == curve(tmp_path / "whole")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")


def test_a_damaged_checkpoint_costs_its_steps_and_nothing_else(unbroken, tmp_path):
    config = dataclasses.replace(SMALL, num_steps=24)
    train(config, out=tmp_path)
    newest = list_checkpoints(tmp_path / "checkpoints")[-1]
    tensors = newest / "rank-00000.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(config, out=tmp_path, resume=True)
    assert any("passed over" in str(w.message) for w in caught)
    assert curve(tmp_path) == curve(unbroken[1])
    assert weights(tmp_path) == weights(unbroken[1])


def test_resume_refuses_other_settings_and_other_text(unbroken, tmp_path):
    _, out = unbroken
    with pytest.raises(ValueError, match="learning_rate"):
        train(dataclasses.replace(SMALL, learning_rate=1.0), out=out, resume=True)
    with pytest.raises(ValueError, match="corpus"):
        train(dataclasses.replace(SMALL, max_corpus_bytes=100_000), out=out, resume=True)
    with pytest.raises(ValueError, match="resume"):
        train(SMALL, out=out)


def test_other_settings_are_refused_before_the_text_is_read(unbroken, monkeypatch):
    monkeypatch.setattr("recipes.train.run.prepare_together", lambda *_: pytest.fail("read"))
    with pytest.raises(ValueError, match="num_steps: expected 24, got 25"):
        train(dataclasses.replace(SMALL, num_steps=25), out=unbroken[1], resume=True)


@pytest.mark.parametrize("changes", [{"config": None}, {"config": {"depth_of_field": 1}}, {}])
def test_a_checkpoint_of_something_else_is_one_clear_error(unbroken, tmp_path, changes, capsys):
    found = load_latest(unbroken[1] / "checkpoints")
    assert found is not None
    other = Checkpoint(found.step, {"weight": torch.ones(2)}, changes)
    save_checkpoint(tmp_path / "checkpoints", other)
    with pytest.raises(ValueError, match=r"config: expected settings of recipes\.train"):
        train(SMALL, out=tmp_path, resume=True)
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "hf")]) == 2
    assert "written by another version, or another program" in capsys.readouterr().err


def test_a_finished_run_whose_log_is_lost_says_so(unbroken, tmp_path):
    shutil.copytree(unbroken[1], tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").unlink()
    with pytest.raises(ValueError, match=r"log\.jsonl: expected the log of a finished run"):
        train(SMALL, out=tmp_path / "run", resume=True)


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(tmp_path):
    data = prepare(SMALL)
    trainer = Trainer(SMALL, data)
    trainer.train_step()
    before = {name: t.clone() for name, t in trainer.decoder.state_dict().items()}
    moments = {k: v.clone() for k, v in trainer.state_tensors().items() if "optimizer" in k}
    weight = trainer.decoder.embed.weight
    for bad in (math.nan, math.inf):
        handle = weight.register_hook(lambda grad, bad=bad: grad * bad)
        trainer.train_step()
        handle.remove()
    assert (trainer.step, trainer.num_skipped_steps, len(trainer.losses)) == (3, 2, 1)
    for name, tensor in trainer.decoder.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    for name, tensor in trainer.state_tensors().items():
        if "optimizer" in name:
            assert torch.equal(tensor, moments[name]), name
    trainer.train_step()
    assert trainer.num_skipped_steps == 2
    assert len(trainer.losses) == 2


def test_gradients_that_stay_bad_end_the_run():
    trainer = Trainer(SMALL, prepare(SMALL))
    trainer.decoder.embed.weight.register_hook(lambda grad: grad * math.nan)
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        trainer.train_step()
    with pytest.raises(TrainingDiverged, match="learning_rate"):
        trainer.train_step()
    assert trainer.num_skipped_steps == MAX_SKIPPED_IN_A_ROW


def test_parameters_that_are_not_finite_are_never_saved():
    trainer = Trainer(SMALL, prepare(SMALL))
    with torch.no_grad():
        trainer.decoder.embed.weight[0, 0] = math.nan
    with pytest.raises(TrainingDiverged, match="finite"):
        trainer.checkpoint()


def test_bfloat16_follows_float32(tmp_path, unbroken):
    result = train(dataclasses.replace(SMALL, dtype="bfloat16"), out=tmp_path)
    for one, other in zip(result.entries, unbroken[0].entries, strict=True):
        assert abs(one.loss - other.loss) < 0.03 * other.loss


def test_the_log_is_json_lines(unbroken):
    lines = (unbroken[1] / "log.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == [1, 4, 8, 12, 16, 20, 24]


def test_resume_of_nothing_says_so(tmp_path) -> None:
    notes: list[str] = []
    config = dataclasses.replace(SMALL, num_steps=1)
    train(config, out=tmp_path / "new", resume=True, on_note=notes.append)
    assert f"nothing to resume in {tmp_path / 'new'}: starting at step 0" in notes


def test_a_full_disk_and_an_interrupt_have_their_own_exit_status(tmp_path, capsys, monkeypatch):
    words = ["--preset", "tiny", "num_steps=1", "--out", str(tmp_path)]
    ends = [(CheckpointFailed(errno.ENOSPC, "checkpoint of step 1 not written"), 1)]
    ends += [(TrainingDiverged("gradient: expected finite numbers"), 1), (KeyboardInterrupt(), 130)]
    for error, status in ends:

        def fails(self, error=error):
            raise error

        monkeypatch.setattr(Trainer, "train_step", fails)
        assert main(words) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("interrupted" if status == 130 else "error: ")


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path, capsys) -> None:
    (tmp_path / "file").write_text("")
    assert main(["--preset", "tiny", "num_steps=1", "--out", str(tmp_path / "file" / "run")]) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "lacking",
    [
        "model.final_norm.weight",
        "optimizer.final_norm.weight.",
        "optimizer.final_norm.weight.exp_avg_sq",
    ],
)
def test_a_checkpoint_that_lacks_tensors_is_refused(unbroken, tmp_path, lacking):
    last = load_latest(unbroken[1] / "checkpoints")
    assert last is not None
    kept = {name: t for name, t in last.tensors.items() if not name.startswith(lacking)}
    assert len(kept) < len(last.tensors)
    save_checkpoint(tmp_path, Checkpoint(last.step, kept, last.state))
    trainer, cut = Trainer(SMALL, prepare(SMALL)), load_latest(tmp_path)
    assert cut is not None
    before = {name: p.clone() for name, p in trainer.replica.parameters.items()}
    with pytest.raises(ValueError, match=rf"got {lacking.rstrip('.')} and 0 more missing"):
        trainer.restore(cut)
    for name, parameter in trainer.replica.parameters.items():
        assert torch.equal(parameter, before[name]), "nothing is taken over"
