"""The plain model the trainer is compared with is the same model."""

import dataclasses

import pytest
import torch

from benches.plain_trainer import BareLoop, PlainModel
from recipes.train import tiny
from recipes.train.prepare import prepare
from recipes.train.trainer import Trainer


@pytest.fixture(scope="module")
def trainer():
    config = dataclasses.replace(tiny(), max_corpus_bytes=40_000, vocab_size=300)
    return Trainer(config, prepare(config))


def test_the_plain_model_has_the_loss_of_the_trained_one(trainer):
    plain = PlainModel(trainer.config, trainer.data.tokenizer.get_vocab_size())
    names = {"attention.qkv": "qkv", "attention.out": "out"}
    names |= {"mlp.gate_up": "gate_up", "mlp.down": "down"}
    weights = {}
    for name, tensor in trainer.decoder.state_dict().items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = tensor
    plain.load_state_dict(weights)
    batch = trainer.data.batches.batch(0)
    with torch.no_grad():
        found = plain(batch.inputs, batch.labels).item()
    sums = trainer.replica.loss_sums(trainer.replica.sequences(batch))
    assert found == pytest.approx(sums.sum().item() / batch.labels.numel(), rel=1e-5)


def test_the_bare_loop_steps_as_the_trainer_does(trainer):
    batch = trainer.data.batches.batch(trainer.step)
    loss = BareLoop(trainer).step(batch.inputs, batch.labels)
    again = Trainer(trainer.config, trainer.data)
    again.train_step()
    assert again.losses[0] == pytest.approx(loss, rel=1e-6)
    for name, parameter in again.replica.parameters.items():
        expected = trainer.replica.parameters[name].grad
        assert parameter.grad is not None, name
        assert expected is not None, name
        assert torch.allclose(parameter.grad, expected, rtol=1e-4, atol=1e-6), name
