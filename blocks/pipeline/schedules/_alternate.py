"""``alternate``: warm up with forwards, then one forward, one backward, over rounds of chunks."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

from blocks.pipeline.action import Kind
from blocks.pipeline.schedules._build import BW, F

T = TypeVar("T")


def alternate(
    forwards: Sequence[tuple[int, T]], backwards: Sequence[tuple[int, T]], num_ahead: int
) -> Iterator[tuple[Kind, int, T]]:
    """``num_ahead`` forwards, then backward and forward in turn, then the backwards that are left.

    forwards, backwards: chunk and unit, in order.

    >>> both = [(0, name) for name in "abc"]
    >>> [kind.value + name for kind, _, name in alternate(both, both, 2)]
    ['Fa', 'Fb', 'BWa', 'Fc', 'BWb', 'BWc']
    """
    ahead = min(num_ahead, len(forwards))
    for chunk, unit in forwards[:ahead]:
        yield F, chunk, unit
    for index, (chunk, unit) in enumerate(backwards):
        yield BW, chunk, unit
        if ahead + index < len(forwards):
            yield (F, *forwards[ahead + index])


def rounds(units: Sequence[T], size: int, chunks: Sequence[int]) -> list[tuple[int, T]]:
    """Units in rounds of ``size``: each round passes all ``chunks`` before the next one begins.

    >>> rounds("abcd", 2, (0, 1))
    [(0, 'a'), (0, 'b'), (1, 'a'), (1, 'b'), (0, 'c'), (0, 'd'), (1, 'c'), (1, 'd')]
    """
    starts = range(0, len(units), size)
    return [(chunk, unit) for s in starts for chunk in chunks for unit in units[s : s + size]]


def num_ahead(
    num_ranks: int, rank: int, num_chunks: int, size: int, depth: int, *, reach: int | None = None
) -> int:
    """Forwards before the first backward: the fewest with which no rank waits once all are busy.

    Args:
        size: units in a round.
        depth: units of a sequence; its first backward is that of the last of them.
        reach: units more for every rank behind this one; the fewest when None.
    """
    fewest = 1 if num_chunks == 1 else 2
    behind = (num_ranks - 1 - rank) * (fewest if reach is None else reach)
    return (num_chunks - 1) * size + depth + behind
