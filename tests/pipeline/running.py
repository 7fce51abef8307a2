"""Runs a schedule in process, all ranks as threads."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blocks.pipeline import (
    Executor,
    Schedule,
    StepResult,
    TensorSpec,
    in_process_transports,
    run_ranks,
)
from blocks.pipeline.schedules import seq1f1b
from tests.pipeline.slice_model import (
    WIDTH,
    Sequences,
    make_sequences,
    make_stages,
    plain_step,
    take_gradients,
)


def run_step(
    schedule: Schedule,
    stages: Sequence[nn.Module],
    sequences: Sequences,
    *,
    dtype: torch.dtype,
    max_delay_s: float = 0.0,
    delay_seed: int = 0,
    step: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[tuple[int, int], Tensor]:
    """One step of the small transformer; gradients are in the stages afterwards."""

    def work(transport) -> StepResult:
        executor = make_executor(schedule, stages, transport, dtype, **options)
        return executor.step(sequences.data, sequences.bounds, **(step or {}))

    transports = in_process_transports(schedule.num_ranks, max_delay_s=max_delay_s, seed=delay_seed)
    results = run_ranks(work, transports)
    return {key: loss for result in results for key, loss in result.losses.items()}


def worst_rounding(dtype: torch.dtype, packed: bool = False) -> float:
    """How far gradients of slices are from those of the whole sequence, in the worst tensor
    relative to its largest gradient."""
    whole, cut = (make_sequences([b], packed=packed) for b in ((0, 40), (0, 9, 10, 24, 33, 40)))
    stages = make_stages([2, 1], dtype, window=7 if packed else None)
    plain_step(stages, whole)
    expected = take_gradients(stages)
    run_step(seq1f1b(2, cut.num_slices), stages, cut, dtype=dtype)
    found = take_gradients(stages)
    errors = [(found[name] - g).abs().max() / g.abs().max() for name, g in expected.items()]
    return max(error.item() for error in errors)


def make_executor(
    schedule: Schedule, stages: Sequence[nn.Module], transport, dtype: torch.dtype, **options: Any
) -> Executor:
    rank = transport.rank
    mine = {i: stages[i] for i, at in enumerate(schedule.placement) if at == rank}
    options = {"abort_after_s": 60.0, **options}
    return Executor(
        rank,
        schedule,
        mine,
        transport,
        wire=lambda source, target, num_tokens: [TensorSpec((num_tokens, WIDTH), dtype)],
        **options,
    )
