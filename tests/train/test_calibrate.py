"""Costs of slices, of a stage whose every action takes what a formula says."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from blocks.pipeline import Kind
from recipes.train import calibrate, tiny
from recipes.train.config import resolve
from recipes.train.model import model_config
from recipes.train.prepare import prepare


class Machine:
    """A clock, and what the last action left in the caches."""

    def __init__(self) -> None:
        self.now, self._last = 0.0, ""

    def __call__(self) -> float:
        return self.now

    def work(self, kind: str, seconds: float) -> None:
        self.now += seconds + (0.7e-3 if kind != self._last else 0.0)
        self._last = kind


class Formula(nn.Module):
    """A stage that takes milliseconds of a formula, and more after one of the other kind."""

    embed, dtype = None, torch.float32

    def __init__(self, machine: Machine) -> None:
        super().__init__()
        self._machine = machine

    def forward(self, x: Tensor, *, context) -> Tensor:
        length, machine = context.num_tokens, self._machine
        seconds = 1e-5 * length + 1e-7 * length * context.start

        class Run(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                machine.work("F", seconds)
                return x.clone()

            @staticmethod
            def backward(ctx, grad):
                machine.work("B", 2 * seconds)
                return grad

        return Run.apply(x)


@pytest.fixture
def formula(monkeypatch):
    config = resolve(dataclasses.replace(tiny(), pp=2, microbatch=1))
    machine = Machine()
    monkeypatch.setattr(calibrate, "_ranks", lambda *_: [[Formula(machine)]])
    return config, model_config(config, prepare(config).tokenizer), machine


def test_costs_are_those_of_actions_that_follow_the_other_kind(formula):
    config, model, machine = formula
    (surface,) = calibrate.calibrate(config, model, clock=machine)
    assert surface.residual is not None
    assert surface.residual.max_relative < 1e-6
    seconds = 1e-5 * 32 + 1e-7 * 32 * 16
    assert surface.seconds(Kind.FORWARD, 32, 16) == pytest.approx(seconds + 0.7e-3)
    assert surface.seconds(Kind.FULL_BACKWARD, 32, 16) == pytest.approx(2 * seconds + 0.7e-3)


def test_rows_that_cannot_be_cut_in_two_are_refused(formula):
    config, model, machine = formula
    short = dataclasses.replace(config, context_len=15)
    with pytest.raises(ValueError, match="context_len: expected at least 16 tokens"):
        calibrate.calibrate(short, model, clock=machine)
