"""Orders that a search begins with, and its steps from one to the next. Needs no torch."""

import dataclasses
import itertools
from collections.abc import Iterator

from blocks.pipeline.plan.merge import merge, positions
from blocks.pipeline.plan.step_costs import StepCosts
from blocks.pipeline.plan.step_graph import StepGraph
from blocks.pipeline.plan.trials import Knobs, Trials
from blocks.pipeline.plan.walk import INFINITY

MOST_AHEAD = 3
"""Slices for every stage that the first rank may run further ahead than one-forward-one-backward.
More would not make up for anything: by then no rank waits for a slice of uneven cost."""
ENDS = (0, -1, 1, 3, -3, -6, -12, -20)
"""How many slices further than one-forward-one-backward the last rank may run ahead, where the
first runs no less far ahead than there; where it does, the last falls back with it."""


def strict_offsets(costs: StepCosts) -> tuple[float, ...]:
    """How far one-forward-one-backward runs ahead on every rank, in actions.

    A whole sequence, and one slice per rank that follows; with chunks two, and all chunks but the
    last ``num_ranks`` slices each.
    """
    ranks, chunks = costs.num_ranks, costs.num_chunks
    step = 1 if chunks == 1 else 2
    first = costs.num_slices + (chunks - 1) * ranks
    return tuple(float(first + step * (ranks - 1 - rank)) for rank in range(ranks))


def most_live(costs: StepCosts, cap: int | float) -> int:
    """How many sequences at most a rank works on at once in the orders that are tried."""
    ahead = strict_offsets(costs)[0] + MOST_AHEAD * costs.num_stages
    live = -(-ahead // (costs.num_slices * costs.num_chunks))
    kept = sum(map(sum, costs.kept[:: costs.num_ranks]))
    return int(min(live, cap / kept + 1 if kept else live))


def serial_offsets(costs: StepCosts) -> tuple[float, ...]:
    """No forward runs before the backward ahead of it needs it: the order of least memory."""
    return (-INFINITY,) * costs.num_ranks


def serial_peak(costs: StepCosts, num_sequences: int) -> float:
    """Bytes of the worst rank in the order of least memory."""
    alike = min(num_sequences, 2) if costs.num_chunks == 1 else num_sequences
    words = Trials(StepGraph(costs, alike), INFINITY).words(Knobs(0.0, serial_offsets(costs)))
    assert words is not None, "without a cap every order fits"
    return max(word.peak_bytes for word in words)


def starts(trials: Trials) -> Iterator[Knobs]:
    """Orders to begin with, the likely ones first."""
    for knobs in _merges(trials):
        yield knobs
        if trials.graph.costs.splits_weights:
            yield dataclasses.replace(knobs, slack=0.5)
            one_each = (1.0,) * len(knobs.offsets)
            yield dataclasses.replace(knobs, slack=0.5, max_pending=one_each)


def _merges(trials: Trials) -> Iterator[Knobs]:
    costs = trials.graph.costs
    strict, last = strict_offsets(costs), costs.num_ranks - 1
    yield Knobs(0.0, strict)
    yield Knobs(0.0, serial_offsets(costs))
    rises = _ladder(_most_ahead(trials, strict[0]))
    first = itertools.product((0.0, 1.0), rises, ENDS[:1])
    others = itertools.product((0.0, 1.0), rises, ENDS[1:])
    halves = itertools.product((0.5,), rises, ENDS)
    for mix, rise, end in itertools.chain(first, others, halves):
        slope = (min(rise, 0) + end - rise) / max(1, last)
        yield Knobs(mix, tuple(x + rise + slope * rank for rank, x in enumerate(strict)))


def _most_ahead(trials: Trials, strict: float) -> int:
    """How much further than ``strict`` the first rank may run ahead before the cap cuts in."""
    stream, graph = trials.graph.stream(0), trials.graph
    counted = positions(stream, 0.0)
    low, high = -int(strict), min(len(stream.forwards), MOST_AHEAD * graph.costs.num_stages)
    while low < high:
        middle = (low + high + 1) // 2
        word = merge(stream, counted, strict + middle, INFINITY)
        assert word is not None, "a merge without a cap always fits"
        low, high = (middle, high) if word.peak_bytes <= trials.cap else (low, middle - 1)
    trials.walked += graph.size // 2
    return low


def _ladder(most: int) -> list[int]:
    """Heights to try, from the most that fits downwards, and two that the cap will cut."""
    if most <= 0:
        return [most, most + 1, most - 1, most + 3, most - 3, most - 6]
    step = max(1, most // 6)
    return [most, *range(most - step, 0, -step), most + 1, most + 3, 0]


def moves(knobs: Knobs) -> Iterator[Knobs]:
    """Steps of single ranks, of the first ranks and of the last."""
    offsets = knobs.offsets
    everyone = range(len(offsets))
    for step in (1.0, -1.0, 0.5, -0.5):
        groups = [[rank] for rank in everyone]
        groups += [[*everyone[:rank]] for rank in everyone[2:]]
        groups += [[*everyone[rank:]] for rank in everyone[:-1]]
        for group in groups:
            moved = tuple(x + step * (rank in group) for rank, x in enumerate(offsets))
            yield dataclasses.replace(knobs, offsets=moved)


def less_room(knobs: Knobs) -> Iterator[Knobs]:
    """Forwards that fill less of the cap."""
    for share in (0.98, 0.95, 0.9):
        yield dataclasses.replace(knobs, room=knobs.room * share)
