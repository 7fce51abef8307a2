"""Every order of a step so small that all of them can be timed. Needs no torch."""

import itertools
from collections.abc import Iterator, Sequence

from blocks.pipeline.plan.merge import SLACK, Word
from blocks.pipeline.plan.step_graph import RankStream, StepGraph


def every_order(graph: StepGraph, cap: int | float, limit: int) -> Iterator[Sequence[Word]]:
    """All combinations of all ranks' merges under ``cap``; nothing if there are over ``limit``."""
    words, total = [], 1
    for rank in range(graph.costs.num_ranks):
        few = list(itertools.islice(every_word(graph.stream(rank), cap), limit + 1))
        words.append(few)
        total *= len(few)
        if total > limit:
            return iter(())
    return itertools.product(*words)


def every_word(stream: RankStream, cap: int | float) -> Iterator[Word]:
    """All merges of a rank's forwards and backwards that fit under ``cap``.

    A merge is how many forwards come before each backward: at least as many as before the last
    one and as it needs.
    """
    limit = cap * (1 + SLACK)
    kept = [0.0, *itertools.accumulate(stream.kept)]
    num_backwards = len(stream.backwards)

    def from_here(j: int, k: int, freed: float, peak: float) -> Iterator[Word]:
        if j == num_backwards:
            yield Word((), peak)
            return
        for count in range(max(k, stream.needed[j]), len(stream.forwards) + 1):
            live = kept[count] - freed
            high = max(peak, live, live + stream.opened[j] + stream.extra[j])
            if high > limit:
                return
            rest = from_here(j + 1, count, freed + stream.freed[j] - stream.opened[j], high)
            here = (*stream.forwards[k:count], stream.backwards[j])
            for word in rest:
                yield Word(here + word.numbers, word.peak_bytes)

    yield from from_here(0, 0, 0.0, 0.0)
