"""``alternate``: warm up with forwards, then one forward, one backward, over rounds of chunks."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from blocks.pipeline.action import Kind
from blocks.pipeline.schedules._build import BW, F

T = TypeVar("T")


def alternate(
    forwards: Sequence[tuple[int, T]], backwards: Sequence[tuple[int, T]], counts: Iterable[int]
) -> Iterator[tuple[Kind, int, T]]:
    """Forwards and backwards in one order.

    Args:
        forwards, backwards: chunk and unit, in order.
        counts: for every backward how many forwards come before it, ascending; those beyond the
            number of forwards count as all.

    >>> both = [(0, name) for name in "abc"]
    >>> [kind.value + name for kind, _, name in alternate(both, both, (2, 3, 4))]
    ['Fa', 'Fb', 'BWa', 'Fc', 'BWb', 'BWc']
    """
    done = 0
    for (chunk, unit), count in zip(backwards, counts, strict=False):
        for ahead in forwards[done:count]:
            yield (F, *ahead)
        done = max(done, count)
        yield BW, chunk, unit


def rounds(units: Sequence[T], size: int, chunks: Sequence[int]) -> list[tuple[int, T]]:
    """Units in rounds of ``size``: each round passes all ``chunks`` before the next one begins.

    >>> rounds("abcd", 2, (0, 1))
    [(0, 'a'), (0, 'b'), (1, 'a'), (1, 'b'), (0, 'c'), (0, 'd'), (1, 'c'), (1, 'd')]
    """
    starts = range(0, len(units), size)
    return [(chunk, unit) for s in starts for chunk in chunks for unit in units[s : s + size]]


def one_by_one(
    num_ranks: int, rank: int, num_chunks: int, size: int, depth: int, *, reach: int = 1
) -> Iterator[int]:
    """For ``alternate``: forwards before the first backward, and one more before every other; the
    fewest with which no rank waits once all are busy.

    Args:
        size: units in a round.
        depth: units of a sequence; its first backward is that of the last of them.
        reach: of one chunk, units by which a rank is ahead of the next; more than 1 where messages
            take time.
    """
    behind = (num_ranks - 1 - rank) * (reach if num_chunks == 1 else 2)
    return itertools.count((num_chunks - 1) * size + depth + behind)
