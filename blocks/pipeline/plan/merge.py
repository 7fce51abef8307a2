"""``merge``: one rank's forwards and backwards in one order, under a memory cap. Needs no torch."""

import itertools
from enum import StrEnum
from typing import NamedTuple

from blocks.pipeline.plan.step_graph import RankStream

SLACK = 1e-9
"""Share of a cap that sums of bytes may be off by."""


DIGITS = 6
"""Places are rounded, so that ties stay ties however many sequences there are."""


class Counted(StrEnum):
    """What the distance between a forward and a backward is counted in."""

    ACTIONS = "actions"
    """One forward for one backward."""
    WORK = "work"
    """Seconds: light slices overtake until work is even."""
    HALF = "half"
    """The mean of both."""
    BYTES = "bytes"
    """What forwards keep and backwards free."""


class Word(NamedTuple):
    """An order of a rank's forwards and backwards.

    numbers: of the actions; a recomputation is left out, it runs right before its backward.
    peak_bytes: the most that is live at once where every weight gradient follows its backward.
    """

    numbers: tuple[int, ...]
    peak_bytes: float


def merge(
    stream: RankStream,
    positions: tuple[list[float], list[float]],
    offset: float,
    cap: int | float,
) -> Word | None:
    """Forwards run ahead of backwards by ``offset``, less where memory does not allow it.

    Forward ``k`` goes before backward ``j`` if ``positions[0][k] - positions[1][j] < offset`` and
    if what it keeps leaves room for that backward; in any case where the backward needs it.

    Returns:
        None where the forwards a backward needs do not fit under ``cap``.
    """
    ahead, behind = positions
    forwards, backwards, needed = stream.forwards, stream.backwards, stream.needed
    kept, extra, opened, freed = stream.kept, stream.extra, stream.opened, stream.freed
    limit = cap * (1 + SLACK)
    room = limit - max(extra)  # a forward that is not needed yet leaves room for a backward
    numbers: list[int] = []
    num_forwards, k, live, peak = len(forwards), 0, 0.0, 0.0
    for j, backward in enumerate(backwards):
        need, key, most = needed[j], behind[j] + offset, room - opened[j]
        while k < num_forwards and (k < need or (ahead[k] < key and live + kept[k] <= most)):
            numbers.append(forwards[k])
            live += kept[k]
            k += 1
        if live > peak:
            peak = live
        live += opened[j]
        if live + extra[j] > peak:
            peak = live + extra[j]
        if peak > limit:
            return None
        numbers.append(backward)
        live -= freed[j]
    return Word(tuple(numbers), peak)


def positions(stream: RankStream, counted: Counted) -> tuple[list[float], list[float]]:
    """Where every forward and backward stands in its stream, in units of the mean one."""
    if counted is Counted.BYTES:
        return _ends(stream.kept), _begins(stream.freed)
    mix = _WORK[counted]
    return _middles(stream.forward_s, mix), _middles(stream.backward_s, mix)


_WORK = {Counted.ACTIONS: 0.0, Counted.HALF: 0.5, Counted.WORK: 1.0}


def _middles(seconds: list[float], mix: float) -> list[float]:
    share = mix / _mean(seconds)
    work, places = 0.0, []
    for index, time in enumerate(seconds):
        place = (1 - mix) * (index + 0.5) + share * (work + time / 2)
        places.append(round(place, DIGITS))
        work += time
    return places


def _begins(sizes: list[float]) -> list[float]:
    mean = _mean(sizes)
    before = itertools.accumulate(sizes[:-1], initial=0.0)
    return [round(size / mean, DIGITS) for size in before]


def _ends(sizes: list[float]) -> list[float]:
    mean = _mean(sizes)
    return [round(size / mean - 0.5, DIGITS) for size in itertools.accumulate(sizes)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) or 1.0
