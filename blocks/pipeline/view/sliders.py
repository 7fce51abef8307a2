"""``sliders_of``: what-if questions about a trace that are worth asking of any."""

from collections.abc import Callable, Iterable, Mapping

from blocks.pipeline.measured import transfer_s
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.timeline import Timeline
from blocks.pipeline.trace import Trace
from blocks.pipeline.view.page import Slider
from blocks.pipeline.view.scale import time_text
from blocks.pipeline.what_if import what_if

MAX_ACTIONS = 30_000
"""What all choices together may hold, so that a page stays small."""

Generator = Callable[..., Schedule]


def sliders_of(trace: Trace, schedules: Mapping[str, Generator]) -> list[Slider]:
    """Other transfer times; other schedules of the same stages and slices; other numbers of slices.

    The first choice of each is the step as it was. Schedules are made for the trace's sequences
    by ``schedules``, and left out where their stages are not the trace's; numbers of slices are
    left out where the trace has too few different slices to tell their cost.
    """
    own = what_if(trace).timeline
    room = MAX_ACTIONS // max(sum(map(len, own.spans)), 1)
    found = []
    for slider in (
        _transfers(trace, own),
        _schedules(trace, own, schedules),
        _slices(trace, own, schedules),
    ):
        choices = slider.choices[: max(room, 0) + 1]
        room -= len(choices) - 1
        if len(choices) > 1:
            found.append(slider._replace(choices=choices))
    return found


def _transfers(trace: Trace, own: Timeline) -> Slider:
    measured = transfer_s(trace)
    mean = float(own.makespan) / max(map(len, own.spans), default=1)
    others = sorted({0.0, 10 * measured, mean / 4, mean} - {measured})
    choices = [(time_text(measured, "s"), own)]
    choices += [(time_text(s, "s"), what_if(trace, transfer=s).timeline) for s in others]
    return Slider("transfer", choices)


def _schedules(trace: Trace, own: Timeline, schedules: Mapping[str, Generator]) -> Slider:
    schedule = trace.schedule
    chunks = max(schedule.chunks) + 1
    choices = [(schedule.name, own)]
    for name, generate in schedules.items():
        other = _made(generate, schedule.num_ranks, schedule.num_slices, chunks)
        if other is None or other.programs == own.schedule.programs:
            continue
        if other.placement == schedule.placement and other.num_slices == schedule.num_slices:
            choices.append((name, what_if(trace, other).timeline))
    return Slider("schedule", choices)


def _slices(trace: Trace, own: Timeline, schedules: Mapping[str, Generator]) -> Slider:
    """Equal slices, as many for every sequence as one of the powers of two."""
    schedule = trace.schedule
    counts = schedule.num_slices
    choices = [("as measured", own)]
    generate = schedules.get(schedule.name)
    if generate is None or len(set(counts)) > 1:
        return Slider("slices", choices)
    chunks = max(schedule.chunks) + 1
    for count in _powers(counts[0]):
        other = _made(generate, schedule.num_ranks, (count,) * len(counts), chunks)
        cuts = [[cut[-1] * n // count for n in range(count + 1)] for cut in trace.bounds]
        if other is None or any(cut[-1] < count for cut in trace.bounds):
            continue
        try:
            choices.append((f"{count} equal", what_if(trace, other, bounds=cuts).timeline))
        except ValueError:  # too few different slices to fit a surface to
            break
    return Slider("slices", choices)


def _powers(near: int) -> Iterable[int]:
    return [n for n in (1, 2, 4, 8, 16, 32, 64) if near / 4 <= n <= near * 4]


def _made(
    generate: Generator, num_ranks: int, num_slices: tuple[int, ...], chunks: int
) -> Schedule | None:
    try:
        return generate(num_ranks, num_slices, num_chunks=chunks)
    except (TypeError, ValueError):  # a family for other numbers of chunks or sequences
        return None
