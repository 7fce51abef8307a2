"""Figures of real speed: a token pipeline of two processes, and what slices cost."""

import dataclasses
import functools
import statistics
from collections.abc import Iterator

from benches.figures.row import Measured, Row
from benches.pipeline_speed import measure, slicing_overhead
from benches.pipeline_speed_result import Result, Setting

COMMAND = "python -m benches.figures --area pipeline"
SIZE = "T=2048, d=512, 4 layers, batch 1, fp32"


def rows() -> Iterator[Row]:
    small = Setting(num_layers=2, balanced=True)
    for num_slices, target in ((4, 1.10), (8, 1.20)):
        setting = dataclasses.replace(small, num_slices=num_slices)
        yield Row(
            f"CPU time of {num_slices} slices of equal arithmetic over that of whole rows, T=2048, "
            "d=512, 2 layers",
            f"<= {target:.2f}x",
            COMMAND,
            functools.partial(_overhead, setting, target),
        )
    claim = "token pipeline, 2 processes x 1 thread over 1 process x 1 thread, 4 slices of "
    claim += f"equal arithmetic, {SIZE}"
    yield Row(claim, ">= 1.4x", COMMAND + " --nightly", _speed, nightly=True)
    claim = f"its makespan replayed from its trace, median error, {SIZE}"
    yield Row(claim, "<= 3 %", COMMAND + " --nightly", _replay, nightly=True)


def _overhead(setting: Setting, target: float) -> Measured:
    found = sorted(slicing_overhead(setting))
    median = statistics.median(found)
    return Measured(f"{median:.2f}x ({found[0]:.2f}-{found[-1]:.2f})", median <= target)


@functools.cache
def _result() -> Result:
    return measure(Setting(balanced=True))


def _speed() -> Measured:
    found = _result()
    factors = " x ".join(f"{value:.2f} {name}" for name, value in found.factors.items())
    counted = min(found.num_counted(way) for way in found.runs)
    text = (
        f"{found.speed_up('sliced pair'):.2f}x = {factors} "
        f"(1 process x 2 threads {found.speed_up('two threads'):.2f}x, pair without slices "
        f"{found.speed_up('unsliced pair'):.2f}x, slices alone "
        f"{found.speed_up('sliced alone'):.2f}x; {counted} undisturbed runs or more of each)"
    )
    ok = found.speed_up("sliced pair") >= 1.4 and found.overhead <= 1.10
    return Measured(text, ok and found.enough)


def _replay() -> Measured:
    error = _result().replay_error
    return Measured(f"{error:.1%}", error <= 0.03)
