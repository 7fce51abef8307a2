import dataclasses

import pytest
import torch
import transformers

from recipes.model import dense_attend, load_model
from recipes.train import tiny
from recipes.train.checkpoint import (
    MANIFEST,
    Checkpoint,
    CheckpointDamaged,
    list_checkpoints,
    save_checkpoint,
)
from recipes.train.export import export_checkpoint, read_decoder
from recipes.train.prepare import prepare
from recipes.train.trainer import Trainer
from tests.train.checkpoint.ranks import on_ranks

SMALL = dataclasses.replace(tiny(), max_corpus_bytes=60_000, num_steps=3)


@pytest.fixture(scope="module")
def trainer():
    trainer = Trainer(SMALL, prepare(SMALL))
    for _ in range(3):
        trainer.train_step()
    return trainer


@pytest.fixture(scope="module")
def run(trainer, tmp_path_factory):
    """A run's folder with checkpoints written by three ranks, each with its share of the names."""
    run = tmp_path_factory.mktemp("run")
    whole = trainer.checkpoint()
    names = sorted(whole.tensors)

    def save(ranks):
        for step in (2, 3):
            mine = {name: whole.tensors[name] for name in names[ranks.rank :: 3]}
            save_checkpoint(run / "checkpoints", Checkpoint(step, mine, whole.state), ranks=ranks)

    assert on_ranks(3, save) == [None] * 3
    return run


@torch.no_grad()
def test_an_exported_folder_gives_the_same_logits_in_transformers(trainer, run, tmp_path):
    folder = export_checkpoint(run, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = torch.arange(50) * 7 % SMALL.vocab_size
    attend = dense_attend(trainer.decoder.config, torch.tensor([0, 50], dtype=torch.int32))
    ours = trainer.decoder.logits(trainer.decoder(tokens, torch.arange(50), attend))
    assert (ours - theirs(tokens[None]).logits[0]).abs().max() <= 1e-5
    text = "def f(x):\n    return x\n"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer(text)["input_ids"] == trainer.data.tokenizer.encode(text).ids


def test_float32_keeps_every_bit_and_bfloat16_rounds_once(trainer, run, tmp_path):
    for dtype in ("float32", "bfloat16"):
        folder = export_checkpoint(run / "checkpoints", tmp_path / dtype, dtype=dtype)
        found = load_model(folder).state_dict()
        for name, tensor in trainer.decoder.state_dict().items():
            assert torch.equal(found[name], tensor.to(getattr(torch, dtype))), name


def test_a_path_means_a_checkpoint_or_the_newest_intact_one(run, tmp_path):
    older, newest = list_checkpoints(run / "checkpoints")
    manifest = (newest / MANIFEST).read_bytes()
    try:
        (newest / MANIFEST).write_bytes(manifest[:-1])
        with pytest.warns(RuntimeWarning, match="passed over"):
            export_checkpoint(run, tmp_path / "model")
        with pytest.raises(CheckpointDamaged):
            export_checkpoint(newest, tmp_path / "other")
        (older / MANIFEST).rename(older / "moved")
        with pytest.warns(RuntimeWarning), pytest.raises(ValueError, match="an intact one"):
            export_checkpoint(run, tmp_path / "other")
        (older / "moved").rename(older / MANIFEST)
        export_checkpoint(older, tmp_path / "other")
    finally:
        (newest / MANIFEST).write_bytes(manifest)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "other")]
    assert weights[0] == weights[1]


def test_what_is_no_checkpoint_is_refused(tmp_path, run):
    with pytest.raises(ValueError, match="run's folder"):
        export_checkpoint(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        export_checkpoint(run, tmp_path / "out", dtype="int8")


def test_the_model_of_a_checkpoint_is_that_of_the_run(trainer, run):
    from recipes.train.export import open_checkpoint

    decoder, tokenizer = read_decoder(open_checkpoint(run))
    assert decoder.config == trainer.decoder.config
    assert tokenizer.to_str() == trainer.data.tokenizer.to_str()
