"""One run, many layouts, the same bits."""

import dataclasses
import functools

import pytest
import torch

from blocks.pipeline.schedules import SCHEDULES
from recipes.train import TrainConfig
from recipes.train.config import resolve
from recipes.train.layout import layout_of
from recipes.train.prepare import prepare
from recipes.train.trainer import Trainer
from tests.forked import run_forked
from tests.train.pipelines import SMALL, alone, in_one_process, in_threads, on_one_rank


@functools.cache
def data():
    return prepare(SMALL)


@functools.cache
def bits_of_one_process(config: TrainConfig) -> str:
    return in_one_process(config, data())


CHUNKS = {"interleaved": 2, "looped_bfs": 2, "seq1f1b_interleaved": 2, "slimpipe": 2, "zb_v": 2}


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_every_schedule_gives_the_bits_of_one_process(schedule):
    chunks = CHUNKS.get(schedule, 1)
    config = dataclasses.replace(SMALL, pp=2, schedule=schedule, slices=2, chunks=chunks)
    assert in_threads(config, data()) == bits_of_one_process(alone(config))


@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "bfloat16", "slices": 2, "schedule": "zb_h1"},
        {"tie_embeddings": False, "slices": 2},
        {"layers_per_stage": "1,3", "slices": 3},
        {"layers_per_stage": "0,4"},
        {"document_mask": True, "slices": 3, "microbatch": 2},
        {"window": 7, "slices": 3},
        {"recompute": True, "slices": 4},
        {"recompute": True, "document_mask": True, "slices": 2, "schedule": "zb_h1"},
        {"lanes": 4, "slices": 2},
        {"pp": 4, "lanes": 2, "microbatch": 2, "optimizer": "adamw"},
    ],
    ids=str,
)
def test_everything_composes_and_keeps_its_bits(settings):
    config = dataclasses.replace(SMALL, **{"pp": 2, **settings})
    assert in_threads(config, data()) == bits_of_one_process(alone(config))


@pytest.mark.parametrize("pp", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_a_hundred_steps_stay_equal(pp):
    config = dataclasses.replace(
        SMALL, pp=pp, num_layers=pp, slices=2, batch_size=2, num_steps=100, optimizer="adamw"
    )
    assert in_threads(config, data()) == bits_of_one_process(alone(config))


def test_slices_change_only_rounding():
    found = []
    for slices in (1, 5):
        config = dataclasses.replace(SMALL, slices=slices, document_mask=True)
        trainer = Trainer(config, data())
        trainer.train_step()
        found.append(
            (trainer.losses[0], {n: p.grad for n, p in trainer.replica.parameters.items()})
        )
    (loss, whole), (sliced_loss, sliced) = found
    assert sliced_loss == pytest.approx(loss, rel=1e-6)
    for name, grad in whole.items():
        assert (sliced[name] - grad).abs().max() <= 5e-6 * grad.abs().max(), name


def test_microbatches_and_lanes_change_only_rounding():
    grads = []
    for settings in ({"microbatch": 4}, {"microbatch": 1}, {"microbatch": 1, "lanes": 4}):
        trainer = Trainer(dataclasses.replace(SMALL, **settings), data())
        trainer.train_step()
        found = [p.grad for p in trainer.replica.parameters.values() if p.grad is not None]
        grads.append(torch.cat([grad.flatten() for grad in found]))
    for other in grads[1:]:
        assert (other - grads[0]).abs().max() <= 5e-6 * grads[0].abs().max()


def test_real_processes_give_the_bits_of_one():
    """Four gloo processes, one job, several layouts."""
    base = dataclasses.replace(SMALL, lanes=4, num_steps=3)
    layouts = [
        {"dp": 2, "pp": 2, "slices": 2},
        {"dp": 2, "pp": 2, "schedule": "zb_h1"},
        {"dp": 4},
        {"pp": 4, "slices": 2, "document_mask": True},
        {"dp": 4, "canonical": False},
    ]
    configs = [resolve(dataclasses.replace(base, **layout)) for layout in layouts]
    said = run_forked(4, lambda rank: on_one_rank(configs, data()), timeout_s=200)
    for index, config in enumerate(configs):
        trainer = Trainer(alone(config), data())
        for _ in range(config.num_steps):
            trainer.train_step()
        trainer.losses.append(trainer.evaluate(160).loss)
        mine = {name: p.detach() for name, p in trainer.replica.parameters.items()}
        seen = set()
        for rank, ((losses, norm), state) in enumerate(one[index] for one in said):
            if config.canonical:
                assert (losses, norm) == (tuple(trainer.losses), trainer.grad_norm), (config, rank)
            else:
                assert losses == pytest.approx(trainer.losses, rel=1e-5)
            for name, tensor in state.items():
                same = torch.equal(tensor, mine[name])
                near = not config.canonical and torch.allclose(tensor, mine[name], atol=1e-3)
                assert same or near, (config, rank, name)
            seen |= set(state)
        assert seen == set(mine), layout_of(config)
