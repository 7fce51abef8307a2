"""Orders that a search begins with, and its steps from one to the next. Needs no torch."""

import dataclasses
import itertools
from collections.abc import Iterator

from blocks.pipeline.plan.merge import Counted, merge, positions
from blocks.pipeline.plan.step_costs import StepCosts
from blocks.pipeline.plan.step_graph import StepGraph
from blocks.pipeline.plan.trials import Knobs, Trials
from blocks.pipeline.plan.walk import INFINITY

MOST_AHEAD = 3
"""Slices for every stage that the first rank may run further ahead than one-forward-one-backward.
More would not make up for anything: by then no rank waits for a slice of uneven cost."""
NUM_LIKELY = 6
"""Merges that are tried before all others."""
ENDS = (0.0, -3.0, -1.0, -5.0, 1.0, -2.0, -7.0, 3.0, -9.0, -12.0, -15.0, -20.0)
"""How many slices further than one-forward-one-backward the last rank may run ahead, where the
first runs no less far ahead than there; where it does, the last falls with it. Of 8 ranks; of
more ranks more."""


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
    words = Trials(StepGraph(costs, alike), INFINITY).words(
        Knobs(Counted.ACTIONS, serial_offsets(costs))
    )
    assert words is not None, "without a cap every order fits"
    return max(word.peak_bytes for word in words)


def starts(trials: Trials) -> Iterator[Knobs]:
    """Orders to begin with, the likely ones first."""
    splits = trials.graph.costs.splits_weights
    for index, knobs in enumerate(_merges(trials)):
        if not splits:
            yield knobs
            continue
        yield dataclasses.replace(knobs, slack=0.5)
        if index >= NUM_LIKELY:
            yield knobs
            one_each = (1.0,) * len(knobs.offsets)
            yield dataclasses.replace(knobs, slack=0.5, max_pending=one_each)


def _merges(trials: Trials) -> Iterator[Knobs]:
    costs = trials.graph.costs
    strict = strict_offsets(costs)
    yield Knobs(Counted.ACTIONS, strict)
    yield Knobs(Counted.ACTIONS, serial_offsets(costs))
    rises = _ladder(_most_ahead(trials, strict[0]))
    full = _filling(trials) - strict[0]
    ends = [end * max(1.0, (costs.num_ranks - 1) / 7) for end in ENDS]
    yield Knobs(Counted.ACTIONS, _profile(strict, rises[0], 0))
    yield Knobs(Counted.BYTES, _profile(strict, full, ends[1]))
    yield Knobs(Counted.BYTES, _profile(strict, full - 1, ends[1]))
    yield Knobs(Counted.WORK, _profile(strict, rises[0], 0))
    filling = [
        Knobs(Counted.BYTES, _profile(strict, full - down, end, bend))
        for down, bend, end in itertools.product((0.0, 1.0), (0.0, 0.5, 1.0), ends)
    ]
    even = (Counted.ACTIONS, Counted.WORK)
    if rises[0] < 0:  # memory for the strict order is missing, so it counts first
        yield from filling
    yield from (Knobs(how, _profile(strict, rise, 0)) for how in even for rise in rises)
    if rises[0] >= 0:
        yield from filling
    for counted, rise, end in itertools.product(even, rises, ends):
        yield Knobs(counted, _profile(strict, rise, end))
    for rise, end in itertools.product(rises, ends):
        yield Knobs(Counted.HALF, _profile(strict, rise, end))


def _profile(
    strict: tuple[float, ...], rise: int | float, end: int | float, bend: int | float = 0.0
) -> tuple[float, ...]:
    """Offsets ``rise`` above the strict ones on the first rank, ``end`` on the last.

    Where the first rank falls short of the strict order, the last falls with it. ``bend`` lifts
    the ranks between, the middle one by a quarter of their number.
    """
    last = len(strict) - 1
    slope = (min(rise, 0.0) + end - rise) / max(1, last)
    lift = bend / max(1, last)
    return tuple(
        x + rise + slope * rank + lift * rank * (last - rank) for rank, x in enumerate(strict)
    )


def _filling(trials: Trials) -> float:
    """The offset in bytes, in units of a forward's mean, at which the cap is full."""
    stream = trials.graph.stream(0)
    mean = sum(stream.kept) / len(stream.kept)
    most = strict_offsets(trials.graph.costs)[0] + MOST_AHEAD * trials.graph.costs.num_stages
    return min(most, trials.cap / mean - 0.5) if mean else most


def _most_ahead(trials: Trials, strict: float) -> int:
    """How much further than ``strict`` the first rank may run ahead before the cap cuts in."""
    stream, graph = trials.graph.stream(0), trials.graph
    counted = positions(stream, Counted.ACTIONS)
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
