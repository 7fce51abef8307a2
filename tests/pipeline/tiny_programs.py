"""Random programs on stages of a few numbers, compared bit for bit with a plain loop."""

import contextlib
import random
import time
from typing import Any

import torch
from torch import Tensor, nn

from blocks.pipeline import (
    Executor,
    Schedule,
    SliceContext,
    TensorSpec,
    in_process_transports,
    run_ranks,
)
from tests.pipeline.random_programs import random_schedule
from tests.pipeline.slice_model import Sequences, plain_step

WIDTH = 3


class Carry(torch.autograd.Function):
    """What the slices before this one left, as keys and values are: a sum of theirs.

    The gradient of what this slice leaves is complete when the later slices have run backward.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, state: dict, index: int) -> Tensor:
        ctx.state, ctx.index = state, index
        state["left", index] = left.detach()
        total = torch.zeros_like(left)
        for earlier in range(index):
            total = total + state["left", earlier]
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        state, index = ctx.state, ctx.index
        for earlier in range(index):
            before = state.get(("gradient", earlier))
            state["gradient", earlier] = gradient if before is None else before + gradient
        return state.pop(("gradient", index), torch.zeros_like(gradient)), None, None


class TinyStage(nn.Module):
    """Two linear layers around a carry, with dropout; the last stage sums."""

    def __init__(self, first: bool, last: bool) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, *inputs: Tensor, context: SliceContext) -> Tensor | tuple[Tensor, Tensor]:
        rows = slice(context.start, context.stop)
        x = context.data["x"][rows] if self.first else inputs[0]
        for other in inputs[1:]:
            x = x * 1.25 + other.sum(0) if other.is_floating_point() else x
        y = torch.tanh(self.inner(x))
        y = y + 0.5 * Carry.apply(y.sum(0), context.state, context.slice)
        y = self.outer(y) * torch.rand(y.shape, generator=context.generator)
        if self.last:
            return (y * context.data["slope"][rows]).sum()
        return y, torch.tensor([context.slice])  # a whole number travels too, without gradient


class Program:
    """A random schedule with stages, data, and what a plain loop makes of them."""

    def __init__(self, seed: int, max_ranks: int = 4) -> None:
        rng = random.Random(seed)
        lowered = rng.random() < 0.5
        self.seed = seed
        self.schedule = random_schedule(rng, max_ranks=max_ranks, lowered=lowered)
        count = self.schedule.num_stages
        self.recompute = [stage for stage in range(count) if rng.random() < 0.3]
        self.receive_ahead = rng.randint(1, 4)
        self.synchronous = rng.random() < 0.25
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.stages = [TinyStage(i == 0, i == count - 1) for i in range(count)]
            data, bounds = [], []
            for pieces in self.schedule.num_slices:
                cuts = [0]
                for _ in range(pieces):
                    cuts.append(cuts[-1] + rng.randint(1, 2))
                slope = torch.rand(cuts[-1], 1)
                data.append({"x": torch.randn(cuts[-1], WIDTH), "slope": slope})
                bounds.append(tuple(cuts))
        self.sequences = Sequences(data, bounds)

    def plain(self) -> list[list[Tensor | None]]:
        """Gradients of a plain loop, by stage."""
        edges = self.schedule.edges
        plain_step(self.stages, self.sequences, loss_scale=0.5, edges=edges, seed=self.seed)
        return self.take()

    def executor(self, transport: Any, **options: Any) -> Executor:
        rank, placement = transport.rank, self.schedule.placement
        return Executor(
            rank,
            self.schedule,
            {i: stage for i, stage in enumerate(self.stages) if placement[i] == rank},
            transport,
            wire=lambda source, target, num_tokens: (
                TensorSpec((num_tokens, WIDTH), torch.float32),
                TensorSpec((1,), torch.int64),
            ),
            recompute=self.recompute,
            seed=self.seed,
            receive_ahead=self.receive_ahead,
            synchronous_sends=self.synchronous,
            **{"abort_after_s": 60.0, **options},
        )

    def step(self, executor: Executor) -> None:
        executor.step(self.sequences.data, self.sequences.bounds, loss_scale=0.5, step_index=0)

    def take(self) -> list[list[Tensor | None]]:
        found = [[p.grad for p in stage.parameters()] for stage in self.stages]
        for stage in self.stages:
            stage.zero_grad()
        return found


def same_bits(first: list[Tensor | None], second: list[Tensor | None]) -> bool:
    """Whether two stages' gradients are there alike and equal."""
    for a, b in zip(first, second, strict=True):
        if (a is None) != (b is None) or (a is not None and b is not None and not a.equal(b)):
            return False
    return True


def run_in_process(seed: int, max_delay_s: float = 2e-4) -> bool:
    """Whether a random program gives the bits of the plain loop."""
    program = Program(seed)
    expected = program.plain()
    transports = in_process_transports(
        program.schedule.num_ranks, max_delay_s=max_delay_s, seed=seed
    )
    executors = [program.executor(transport) for transport in transports]
    run_ranks(lambda transport: program.step(executors[transport.rank]), transports)
    return all(map(same_bits, program.take(), expected))


def run_many(first_seed: int, count: int) -> list[int]:
    """Seeds of programs that went wrong; a line every ten seconds."""
    torch.set_num_threads(1)
    wrong, told = [], time.monotonic()
    for seed in range(first_seed, first_seed + count):
        if not run_in_process(seed):
            wrong.append(seed)
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{seed - first_seed + 1} of {count} programs, {len(wrong)} wrong", flush=True)
    return wrong


def refuses(schedule: Schedule) -> bool:
    """Whether executors of all ranks refuse a schedule before anything runs."""
    refused = 0
    for transport in in_process_transports(schedule.num_ranks):
        mine = [i for i, rank in enumerate(schedule.placement) if rank == transport.rank]
        stages = {i: TinyStage(False, False) for i in mine}
        with contextlib.suppress(ValueError):
            Executor(transport.rank, schedule, stages, transport, wire=lambda *_: [])
            refused -= 1
        refused += 1
    return refused == schedule.num_ranks
