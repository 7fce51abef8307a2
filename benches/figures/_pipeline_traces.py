"""Figures of traces: what replay and prediction make of steps of two real processes."""

import functools
import statistics
from collections.abc import Iterator

from benches.figures.row import Measured, Row
from benches.pipeline_model import LARGE, SMALL, Setting
from benches.pipeline_replay import Errors, errors, isolated_s, run

COMMAND = "python -m benches.figures --area pipeline"


def rows() -> Iterator[Row]:
    for setting, nightly in ((SMALL, False), (LARGE, True)):
        command = COMMAND + " --nightly" * nightly
        size = f"2 gloo processes x 1 thread, T={setting.num_tokens}, d={setting.width}"
        measure = functools.partial(_replay, setting)
        claim = f"makespan replayed from a trace against measured, median error, {size}"
        yield Row(claim, "<= 3 %", command, measure, nightly)
        measure = functools.partial(_prediction, setting)
        claim = (
            f"makespan of 4 equal slices predicted from steps of 7 unequal ones, CPU time, {size}"
        )
        yield Row(claim, "<= 10 %", command, measure, nightly)
    claim = "makespan simulated from ranks run alone against ranks run together, CPU time"
    yield Row(claim, "", COMMAND, functools.partial(_isolated, SMALL))


@functools.cache
def _errors(setting: Setting) -> Errors:
    return errors(run(setting), setting)


def _replay(setting: Setting) -> Measured:
    found = _errors(setting)
    sizes = sorted(map(abs, found.replays))
    text = (
        f"{statistics.median(sizes):.1%} (worst {sizes[-1]:.1%} of {len(sizes)}; "
        f"{found.num_quiet} of {found.num_steps} steps undisturbed)"
    )
    return Measured(text, statistics.median(sizes) <= 0.03)


def _prediction(setting: Setting) -> Measured:
    found = _errors(setting).prediction
    return Measured(f"{found:+.1%}", abs(found) <= 0.1)


def _isolated(setting: Setting) -> Measured:
    error = isolated_s(setting) / _errors(setting).cpu_s - 1
    return Measured(f"{error:+.1%}", None)
