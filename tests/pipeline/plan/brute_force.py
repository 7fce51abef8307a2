"""The best order of a tiny step by trying all of them."""

import itertools
from collections.abc import Iterator

from blocks.pipeline.plan.step_costs import StepCosts
from blocks.pipeline.plan.step_graph import RankStream, StepGraph
from blocks.pipeline.plan.walk import INFINITY, walk


def every_word(stream: RankStream, cap: float) -> Iterator[tuple[int, ...]]:
    """All merges of a rank's forwards and backwards that fit under ``cap``."""

    def extend(word: list[int], k: int, j: int, live: float) -> Iterator[tuple[int, ...]]:
        if j == len(stream.backwards):
            yield tuple(word)
            return
        if k < len(stream.forwards) and live + stream.kept[k] <= cap:
            yield from extend([*word, stream.forwards[k]], k + 1, j, live + stream.kept[k])
        opened = live + stream.opened[j]
        if k >= stream.needed[j] and opened + stream.extra[j] <= cap:
            left = opened - stream.freed[j]
            yield from extend([*word, stream.backwards[j]], k, j + 1, left)

    yield from extend([], 0, 0, 0.0)


def best_makespan(costs: StepCosts, num_sequences: int, cap: float) -> float:
    """The least makespan of orders without weight gradients of their own; infinite for none."""
    assert not costs.splits_weights
    graph = StepGraph(costs, num_sequences)
    words = [list(every_word(graph.stream(p), cap)) for p in range(costs.num_ranks)]
    times = (walk(graph, chosen).makespan_s for chosen in itertools.product(*words))
    return min(times, default=INFINITY)
