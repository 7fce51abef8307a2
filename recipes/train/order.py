"""The order of a step's work on the pipeline ranks, and where rows are cut."""

import itertools

from blocks._checks import check
from blocks.pipeline import Action, Kind, Schedule
from blocks.pipeline.schedules import SCHEDULES
from recipes.train.config import TrainConfig
from recipes.train.plan_file import PlanFile
from recipes.train.planned import parallel_plan


def build_schedule(config: TrainConfig) -> Schedule:
    """The order of all microbatches of one replica; of one lane of it where one process has the
    whole model, which takes lane after lane.

    Raises:
        ValueError: no schedule of that name, or not with these sizes.
    """
    assert config.microbatch is not None, "resolved"
    assert config.lanes is not None, "resolved"
    parts = config.lanes if config.pp == 1 else config.dp
    num_slices = [config.slices] * (config.batch_size // parts // config.microbatch)
    if config.plan is not None and parallel_plan(config) is None:
        return PlanFile.read(config.plan).plan.schedule
    if config.pp == 1:
        return one_rank(num_slices)
    make = SCHEDULES[schedule_name(config)]
    return make(config.pp, num_slices, num_chunks=config.chunks)


def schedule_name(config: TrainConfig) -> str:
    """The schedule's name; "auto" takes 1F1B, over token slices where rows are cut."""
    if config.schedule != "auto":
        known = ", ".join(["auto", *sorted(SCHEDULES)])
        check(config.schedule in SCHEDULES, "schedule", f"one of {known}", repr(config.schedule))
        return config.schedule
    if config.chunks > 1:
        return "seq1f1b_interleaved" if config.slices > 1 else "interleaved"
    return "seq1f1b" if config.slices > 1 else "one_f_one_b"


def one_rank(num_slices: list[int]) -> Schedule:
    """One process: each sequence forward, slice after slice, and back again.

    >>> one_rank([2]).programs
    ((F0(0,0), F0(0,1), BW0(0,1), BW0(0,0)),)
    """
    program = []
    for sequence, count in enumerate(num_slices):
        forward = [Action(Kind.FORWARD, 0, 0, sequence, piece) for piece in range(count)]
        program += [*forward, *(a.on(Kind.FULL_BACKWARD) for a in reversed(forward))]
    return Schedule("one rank", (0,), tuple(num_slices), (tuple(program),))


def recomputed_stages(config: TrainConfig) -> tuple[int, ...]:
    """Stages that keep nothing but their inputs."""
    if config.recompute:
        return tuple(range(config.pp * config.chunks))
    if config.plan is None or parallel_plan(config) is not None:
        return ()
    return PlanFile.read(config.plan).plan.recompute


def row_bounds(config: TrainConfig) -> tuple[int, ...]:
    """The token at which each slice of a row begins, and the length of the row.

    Raises:
        ValueError: ``cuts`` that are none.

    >>> row_bounds(TrainConfig(context_len=10, slices=4))
    (0, 2, 5, 7, 10)
    """
    length, count = config.context_len, config.slices
    if config.cuts is None:
        return tuple(length * piece // count for piece in range(count + 1))
    hint = "slices + 1 tokens from 0 to context_len"
    parts = config.cuts.split(",")
    check(all(p.strip().isdecimal() for p in parts), "cuts", "numbers", repr(config.cuts), hint)
    bounds = tuple(map(int, parts))
    fits = (bounds[0], bounds[-1], len(bounds)) == (0, length, count + 1)
    check(fits, "cuts", f"0 to {length} in {count} slices", repr(config.cuts), hint)
    rising = all(a < b for a, b in itertools.pairwise(bounds))
    check(rising, "cuts", "ascending tokens", repr(config.cuts), hint)
    return bounds
