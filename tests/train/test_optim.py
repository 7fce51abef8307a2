import dataclasses
import itertools
import math

import pytest
import torch
from torch import nn

from recipes.train import tiny
from recipes.train.model import build_decoder
from recipes.train.optim import (
    Muon,
    build_optimizers,
    orthogonalize,
    parameter_groups,
)
from recipes.train.rate import learning_rate
from recipes.train.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def decoder():
    return build_decoder(tiny(), train_tokenizer(["some text"], 300))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_has_one_optimizer_and_only_matrices_decay(decoder, optimizer):
    config = dataclasses.replace(tiny(), optimizer=optimizer)
    optimizers = build_optimizers(dict(decoder.named_parameters()), config)
    groups = [group for one in optimizers for group in one.param_groups]
    seen = [id(p) for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in decoder.parameters())
    for group in groups:
        for parameter in group["params"]:
            assert (group["weight_decay"] > 0) == (parameter.ndim == 2)
    assert len(optimizers) == (2 if optimizer == "muon" else 1)
    matrices = parameter_groups(dict(decoder.named_parameters()), config)["matrices"]
    assert all(p is not decoder.embed.weight for p in matrices)


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_orthogonalize_moves_singular_values_to_about_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix).float())
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_muon_agrees_with_the_one_of_torch():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(24, 40, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    one = Muon([ours], lr=0.01, weight_decay=0.1)
    other = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(5):
        grad = torch.randn(24, 40, generator=generator)
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        one.step()
        other.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved


def test_muon_solves_a_least_squares_problem():
    generator = torch.Generator().manual_seed(1)
    target, x = torch.randn(8, 8, generator=generator), torch.randn(64, 8, generator=generator)
    weight = nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], lr=0.1)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        optimizer.zero_grad()
        loss = (x @ weight.T - x @ target.T).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_the_learning_rate_warms_up_and_follows_a_cosine():
    config = dataclasses.replace(
        tiny(), num_steps=101, warmup_steps=11, learning_rate=2.0, min_lr_share=0.1
    )
    rates = [learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(2.0 / 11)
    assert rates[10] == rates[11] == max(rates) == 2.0
    assert rates[100] == pytest.approx(0.2)
    middle = 11 + (100 - 11) / 2
    between = (
        learning_rate(math.floor(middle), config) + learning_rate(math.ceil(middle), config)
    ) / 2
    assert between == pytest.approx(1.1, abs=1e-3)
    assert all(one >= two for one, two in itertools.pairwise(rates[11:]))


def test_a_run_shorter_than_its_warm_up_ends_at_the_peak():
    config = dataclasses.replace(tiny(), num_steps=3, warmup_steps=10)
    assert learning_rate(2, config) == config.learning_rate


def rates(**settings):
    config = dataclasses.replace(
        tiny(), num_steps=101, warmup_steps=11, learning_rate=2.0, min_lr_share=0.1, **settings
    )
    return [learning_rate(step, config) for step in range(101)]


def test_wsd_stays_at_the_peak_and_falls_along_a_line_at_the_end():
    found = rates(rate_schedule="wsd", decay_share=0.2)
    assert found[10:81] == [2.0] * 71
    steps = [a - b for a, b in itertools.pairwise(found[81:])]
    assert max(steps) - min(steps) < 1e-9
    assert found[100] == pytest.approx(0.2)


def test_a_linear_rate_falls_by_equal_steps():
    found = rates(rate_schedule="linear")
    steps = [a - b for a, b in itertools.pairwise(found[11:])]
    assert max(steps) - min(steps) < 1e-9
    assert (found[11], found[100]) == (2.0, pytest.approx(0.2))
