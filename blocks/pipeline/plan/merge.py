"""``merge``: one rank's forwards and backwards in one order, under a memory cap. Needs no torch."""

from typing import NamedTuple

from blocks.pipeline.plan.step_graph import RankStream

SLACK = 1e-9
"""Share of a cap that sums of bytes may be off by."""


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


def positions(stream: RankStream, mix: float) -> tuple[list[float], list[float]]:
    """Where every forward and backward stands in its stream, counted in actions or in work.

    Args:
        mix: 0 counts actions, so that one forward runs per backward; 1 counts seconds in units of
            the mean action, so that light slices overtake until work is even. In between both.
    """
    return _places(stream.forward_s, mix), _places(stream.backward_s, mix)


def _places(seconds: list[float], mix: float) -> list[float]:
    mean = sum(seconds) / len(seconds)
    share = mix / mean if mean else 0.0
    work, places = 0.0, []
    for index, time in enumerate(seconds):
        place = (1 - mix) * (index + 0.5) + share * (work + time / 2)
        places.append(round(place, 6))  # ties stay ties however many sequences there are
        work += time
    return places
