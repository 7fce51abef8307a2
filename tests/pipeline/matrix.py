"""Every schedule, rank count and dtype against a plain loop in one process, bit for bit."""

import functools

import torch
from torch import Tensor

from blocks.pipeline.schedules import MANY_CHUNKS, SCHEDULES
from tests.pipeline.running import run_step
from tests.pipeline.slice_model import (
    Sequences,
    assert_same_bits,
    make_sequences,
    make_stages,
    plain_step,
    take_gradients,
)

NUM_LAYERS = 3
DTYPES = (torch.float32, torch.float64)


def deal_out(num_stages: int) -> list[int]:
    """Layers of every stage, uneven; some stages have none."""
    sizes = [NUM_LAYERS // num_stages] * num_stages
    sizes[-1] += NUM_LAYERS - sum(sizes)
    if num_stages > 1:
        sizes[-1], sizes[0] = sizes[0], sizes[-1]
    return sizes


@functools.cache
def sequences_of(packed: bool) -> Sequences:
    """Sequences of different lengths and cuts."""
    return make_sequences([(0, 3, 4, 8), (0, 4), (0, 2, 7)], packed=packed)


@functools.cache
def expected(dtype: torch.dtype, featured: bool) -> tuple[dict, dict[str, Tensor]]:
    stages = make_stages([NUM_LAYERS], dtype, tied=featured, window=3 if featured else None)
    losses = plain_step(stages, sequences_of(featured), loss_scale=0.25)
    gradients = take_gradients(stages)
    if featured:  # each use of the tied weight is summed by itself, then both
        both = gradients["embed.weight"] + gradients["head.weight"]
        gradients["embed.weight"] = gradients["head.weight"] = both
    return losses, gradients


def check(name: str, num_ranks: int, num_chunks: int, dtype: torch.dtype, featured: bool) -> None:
    """One step; ``featured``: tied, packed, windowed, with a recomputed stage."""
    sequences = sequences_of(featured)
    schedule = SCHEDULES[name](num_ranks, sequences.num_slices, num_chunks=num_chunks)
    count = schedule.num_stages
    stages = make_stages(deal_out(count), dtype, tied=featured, window=3 if featured else None)
    ties = [{0: "embed.weight", count - 1: "head.weight"}] if featured and count > 1 else []
    losses = run_step(
        schedule,
        stages,
        sequences,
        dtype=dtype,
        ties=ties,
        recompute=[count // 2] if featured else [],
        step={"loss_scale": 0.25},
        max_delay_s=1e-3,
    )
    gradients = take_gradients(stages)
    if featured and count == 1:  # one stage has both uses as weights of their own
        both = gradients["embed.weight"] + gradients["head.weight"]
        gradients["embed.weight"] = gradients["head.weight"] = both
    known_losses, known = expected(dtype, featured)
    assert_same_bits(gradients, known)
    assert losses.keys() == known_losses.keys()
    assert all(torch.equal(losses[key], known_losses[key]) for key in losses)


CASES = [
    (name, num_ranks, chunks)
    for name in SCHEDULES
    for num_ranks in (1, 2, 4)
    for chunks in ((2,) if name == "zb_v" else (1, 2) if name in MANY_CHUNKS else (1,))
    if num_ranks * chunks <= 4 or name == "zb_v"
]


def run(dtype: torch.dtype, featured: bool, cases: list[tuple[str, int, int]]) -> list[str]:
    """The cases whose gradients or losses are not those of the plain loop."""
    torch.set_num_threads(1)
    wrong = []
    for name, num_ranks, num_chunks in cases:
        try:
            check(name, num_ranks, num_chunks, dtype, featured)
        except AssertionError as error:
            wrong.append(f"{name} P={num_ranks} chunks={num_chunks} {dtype}: {error}")
    return wrong
