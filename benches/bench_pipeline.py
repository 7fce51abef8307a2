"""What following a schedule costs: the executor's own time per action."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from blocks.pipeline import (
    Executor,
    SliceContext,
    TensorSpec,
    in_process_transports,
    run_ranks,
)
from blocks.pipeline.schedules import seq1f1b

NUM_RANKS, NUM_SEQUENCES, NUM_SLICES = 4, 4, 8


class Nothing(nn.Module):
    """A stage of one multiplication."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.weight, self.last = nn.Parameter(torch.ones(1)), last

    def forward(self, *inputs: Tensor, context: SliceContext) -> Tensor:
        x = inputs[0] if inputs else context.data["x"][context.start : context.stop]
        return (x * self.weight).sum() if self.last else x * self.weight


class EmptySteps:
    """Steps of a pipeline that computes next to nothing, all ranks as threads."""

    def __init__(self, num_ranks: int = NUM_RANKS) -> None:
        schedule = seq1f1b(num_ranks, (NUM_SLICES,) * NUM_SEQUENCES)
        self.stages = [Nothing(stage == num_ranks - 1) for stage in range(num_ranks)]
        self.transports = in_process_transports(num_ranks)
        self.executors = [
            Executor(
                transport.rank,
                schedule,
                {transport.rank: self.stages[transport.rank]},
                transport,
                wire=lambda source, target, num_tokens: [TensorSpec((num_tokens,), torch.float32)],
            )
            for transport in self.transports
        ]
        self.num_actions = sum(map(len, self.executors[0].schedule.programs))
        self.data = [{"x": torch.ones(NUM_SLICES)}] * NUM_SEQUENCES
        self.bounds = [range(NUM_SLICES + 1)] * NUM_SEQUENCES

    def __call__(self) -> list[Any]:
        return run_ranks(
            lambda transport: self.executors[transport.rank].step(self.data, self.bounds),
            self.transports,
        )

    def plain(self) -> None:
        """The same operations by autograd alone."""
        for data in self.data:
            losses = []
            for piece in range(NUM_SLICES):
                x = data["x"][piece : piece + 1]
                for stage in self.stages:
                    x = x.detach().requires_grad_() * stage.weight
                losses.append(x.sum())
            for loss in reversed(losses):
                loss.backward()


def own_us_per_action(num_ranks: int = NUM_RANKS, num_steps: int = 5) -> float:
    """CPU time of all ranks beyond that of the operations, by number of actions, transfers in."""
    steps = EmptySteps(num_ranks)
    steps()
    seconds = []
    for work in (steps, steps.plain):
        began = time.process_time()
        for _ in range(num_steps):
            work()
        seconds.append((time.process_time() - began) / num_steps)
    return (seconds[0] - seconds[1]) / steps.num_actions * 1e6


def own_share(width: int = 512, seq_len: int = 2048, num_slices: int = 4) -> float:
    """The executor's own time as a share of that of the operations: two transformer layers on one
    rank, one sequence, one thread."""
    from tests.pipeline import slice_model

    torch.set_num_threads(1)
    slice_model.WIDTH, slice_model.NUM_HEADS = width, 8
    cuts = tuple(range(0, seq_len + 1, seq_len // num_slices))
    sequences = slice_model.make_sequences([cuts])
    stages = slice_model.make_stages([2], torch.float32)
    slice_model.plain_step(stages, sequences)
    began = time.process_time()
    slice_model.plain_step(stages, sequences)
    busy_us = (time.process_time() - began) * 1e6
    return own_us_per_action(1) * 2 * num_slices / busy_us


def bench_empty_step(benchmark: Any) -> None:
    steps = EmptySteps()
    results = steps()
    assert len(results[-1].losses) == NUM_SEQUENCES * NUM_SLICES
    benchmark(steps)
    if benchmark.stats:
        mean_us = benchmark.stats["mean"] * 1e6
        benchmark.extra_info["us_per_action"] = mean_us / steps.num_actions


@pytest.mark.parametrize("num_ranks", [1, 2])
def bench_own_time(benchmark: Any, num_ranks: int) -> None:
    found = benchmark.pedantic(own_us_per_action, args=(num_ranks,), rounds=1)
    assert found < 1000
    benchmark.extra_info["us_per_action"] = found
