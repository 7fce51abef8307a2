"""Peak bytes as predicted before a run against what the tensors alive after its actions come to.

Sizes are measured in runs of a single sequence, one stage at a time; families are then predicted
from lifetimes alone.
"""

import functools
import itertools

import torch

from blocks.pipeline import SCHEDULES, Held, Kind, Schedule, TensorSpec, lifetimes
from blocks.pipeline.isolate import isolate_rank
from tests.pipeline.slice_model import WIDTH, make_sequences, make_stages

NUM_STAGES, NUM_SLICES, LENGTH = 4, 4, 64
BOUNDS = tuple(range(0, LENGTH + 1, LENGTH // NUM_SLICES))
PREFIX_BYTES = 2 * 2 * LENGTH * WIDTH * 4
"""Keys, values and their gradients of a stage's one layer, for a whole sequence, in float32."""


def counted(schedule: Schedule, rank: int) -> list[int]:
    """Bytes alive after every compute action of a rank."""
    sequences = make_sequences([BOUNDS] * schedule.num_sequences)
    stages = make_stages([1] * NUM_STAGES, torch.float32)
    (trace,) = isolate_rank(
        rank,
        schedule,
        {stage: stages[stage] for stage, at in enumerate(schedule.placement) if at == rank},
        sequences.data,
        sequences.bounds,
        wire=lambda source, target, num_tokens: [TensorSpec((num_tokens, WIDTH), torch.float32)],
        num_repeats=1,
    )
    return [event.live_bytes for event in trace.events if event.action.kind.computes]


@functools.cache
def sizes(stage: int) -> tuple[dict[Held, int], int]:
    """What one sequence shows of a stage: bytes of a slice by what is held of it, and of the
    gradients of the stage's weights."""
    whole = counted(SCHEDULES["gpipe"](NUM_STAGES, (NUM_SLICES,)), stage)
    split = counted(SCHEDULES["zb_h1"](NUM_STAGES, (NUM_SLICES,)), stage)
    kept = whole[1] - whole[0]
    put_aside = kept + split[NUM_SLICES + 1] - split[NUM_SLICES]
    found = {Held.ACTIVATIONS: kept, Held.WEIGHT_INPUTS: put_aside}
    return {**found, Held.KEYS_VALUES: PREFIX_BYTES // NUM_SLICES}, whole[-1]


def predicted(schedule: Schedule, rank: int) -> list[int]:
    """Bytes alive after every action of a rank that has one stage."""
    of, weights = sizes(schedule.placement.index(rank))
    program = schedule.programs[rank]
    change = [0] * (len(program) + 1)
    for held in lifetimes(schedule, whole_prefix=True)[rank]:
        change[held.begin] += of.get(held.what, 0)
        change[held.end] -= of.get(held.what, 0)
    kinds = [action.kind in (Kind.WEIGHT, Kind.FULL_BACKWARD) for action in program]
    change[kinds.index(True)] += weights
    return list(itertools.accumulate(change))[:-1]


def error(family: str, rank: int, num_sequences: int = 6) -> float:
    """The predicted peak against the counted one, as a share of it."""
    schedule = SCHEDULES[family](NUM_STAGES, (NUM_SLICES,) * num_sequences)
    there = max(counted(schedule, rank))
    return abs(max(predicted(schedule, rank)) - there) / there
