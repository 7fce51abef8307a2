"""A profile by running the model: steps of known content, in every layout asked for."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch

from blocks._checks import check, check_count
from blocks.sched.profile import (
    Configuration,
    Profile,
)
from recipes.model import read_config
from recipes.place.group.footprint import block_bytes
from recipes.place.group.spec import GroupSpec
from recipes.place.measure.measured_timing import measured, spec_of, timing_of
from recipes.place.measure.points import Points
from recipes.place.measure.step_timer import StepTimer
from recipes.serve.loading import load
from recipes.serve.parallel import Start, exec_ranks

LIMITS = GroupSpec(group="timed", max_model_len=None)
Progress = Callable[[int, int], object]
"""Told how many visits to points are done, and of how many."""


def measure_profile(
    folder: str | Path,
    layouts: Sequence[tuple[int, int]] = ((1, 1),),
    *,
    model: str | None = None,
    points: Points | None = None,
    limits: GroupSpec = LIMITS,
    start_ranks: Start = exec_ranks,
    clock: Callable[[], float] = time.perf_counter,
    progress: Progress | None = None,
) -> Profile:
    """Time the real engine of a model, and say what it weighs.

    Every layout has an engine at the same time, and the points are visited one after another, round
    by round, so that whatever else the machine does falls on all of them alike; what counts is the
    median over rounds. Several processes wait for one another in every step, so their stages have
    no times of their own: a step's time is divided over stages by their layers. Steps of stages
    that have a batch each (``limits.pp_batches``) are timed one by one, and not cut into runs: so
    they are what the stages compute while other batches fill them.

    Activations are those of the largest steps where one process runs the model: no rank of several
    has more. Without the layout (1, 1) they count nothing.

    Args:
        folder: of the model.
        layouts: (tp, pp) of each configuration.
        model: its name in the profile; the folder's if None.
        points: steps to time; a few that show the trend if None.
        limits: engine limits, threads and dtypes, as a group would have them.
        start_ranks: brings ``tp * pp`` processes to life.
        clock: what seconds are read from; ``time.process_time`` on a machine that others use, for
            layouts of one process.

    Raises:
        ValueError: a model that cannot be cut so, or limits it does not fit.
    """
    check(bool(layouts), "layouts", "at least one (tp, pp)", layouts)
    wanted = sorted({Configuration(*layout).checked() for layout in layouts})
    config = read_config(folder)
    limit = min(limits.max_model_len or config.max_positions, config.max_positions)
    points = (points or Points()).within(limit, limits.token_budget, limits.max_num_seqs)
    with contextlib.ExitStack() as stack:
        timers = {
            one: stack.enter_context(_timer(folder, limits, one, points, start_ranks, clock))
            for one in wanted
        }
        found = _visit(timers, points, progress)
        alone = timers.get(Configuration(1, 1))
        peak = alone.peak_bytes(points.batches[-1], points.contexts[-1]) if alone else 0
    timings = []
    for one in wanted:
        seconds = {key[1:]: taken for key, taken in found.items() if key[0] == one}
        timings.append(timing_of(config, limits, one, points, seconds, peak))
    name = model or Path(folder).resolve().name
    how = f"medians of {points.rounds} rounds over all points; activations"
    how += " of the largest steps in one process" if alone else " were not measured (no 1 x 1)"
    return measured(name, limits, timings, how)


Key = tuple[Configuration, int, int]


def _visit(
    timers: Mapping[Configuration, StepTimer], points: Points, progress: Progress | None
) -> dict[Key, float]:
    """Median seconds by configuration, and (tokens, 0) of prompts or (batch, context)."""
    seconds: dict[Key, list[float]] = {}
    total = points.rounds * len(timers) * (len(points.prefill) + len(list(points.decodes())))
    done = 0
    for turn in range(-1, points.rounds):  # one round before those that count
        for tokens in points.prefill:
            for one, timer in timers.items():
                seconds.setdefault((one, tokens, 0), [])
                taken = [timer.prefill_s(tokens)]
                done = _count(turn, seconds[one, tokens, 0], taken, done, total, progress)
        for batch, context in points.decodes():
            for one, timer in timers.items():
                seconds.setdefault((one, batch, context), [])
                taken = timer.decode_s(batch, context, points.decode_steps)
                done = _count(turn, seconds[one, batch, context], taken, done, total, progress)
    return {key: statistics.median(taken) for key, taken in seconds.items()}


def _count(
    turn: int,
    kept: list[float],
    taken: list[float],
    done: int,
    total: int,
    progress: Progress | None,
) -> int:
    if turn < 0:
        return done
    kept += taken
    if progress is not None:
        progress(done + 1, total)
    return done + 1


@contextlib.contextmanager
def _timer(
    folder: str | Path,
    limits: GroupSpec,
    one: Configuration,
    points: Points,
    start: Start,
    clock: Callable[[], float],
) -> Iterator[StepTimer]:
    """A timer over an engine of its own, which has room for the largest point and step."""
    check_count("num_threads", limits.num_threads)
    spec, config = spec_of(limits, one), read_config(folder)
    longest = points.contexts[-1] + points.num_drawn(spec.token_budget)
    tokens = max(points.batches[-1] * longest, spec.token_budget) + 64 * spec.block_size
    room = (tokens // spec.block_size + spec.max_num_seqs + 1) * max(block_bytes(config, spec))
    before = torch.get_num_threads()
    torch.set_num_threads(limits.num_threads)
    many = one.num_devices > 1
    settings = spec.engine_config(room, config.max_positions)
    if one.pp > 1 and limits.pp_batches != 1:
        settings = dataclasses.replace(settings, pp_slices=1)
    made = load(
        folder,
        settings,
        start=start if many else None,
        num_threads=limits.num_threads,
    )
    try:
        yield StepTimer(made.engine, clock)
    finally:
        made.engine.close()
        torch.set_num_threads(before)
