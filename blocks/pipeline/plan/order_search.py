"""``search_order``: the best order found for given slices under a memory cap. Needs no torch.

On every rank forwards and backwards each keep their own order (sequences ascending, slices
ascending or descending), so a program is a merge of two streams and its memory does not depend on
time. A merge is described by how far forwards run ahead of backwards (``offset``) and in what that
is counted (``mix``): in actions, as 1F1B does, or in work, which keeps ranks in step where slices
cost unequally. The search tries both with offsets that fall from the first rank to the last, up to
what the cap allows, and then moves the offsets of single ranks. Strict one-forward-one-backward is
among the merges tried, so the answer is never worse than it where it fits.

Few sequences stand for many during the search: after the first ones every sequence takes the same
time. The best orders are then timed in full.
"""

import itertools
from typing import NamedTuple

from blocks.pipeline.plan.bound import order_bound
from blocks.pipeline.plan.exhaust import every_order
from blocks.pipeline.plan.merge import Word
from blocks.pipeline.plan.polish import polish
from blocks.pipeline.plan.starts import (
    less_room,
    most_live,
    moves,
    serial_offsets,
    starts,
    strict_offsets,
)
from blocks.pipeline.plan.step_costs import StepCosts
from blocks.pipeline.plan.step_graph import StepGraph
from blocks.pipeline.plan.trials import Knobs, Order, Trials
from blocks.pipeline.plan.walk import INFINITY

EFFORT = 1_500_000
"""Actions a search may walk through; about half a second."""
GOOD_ENOUGH = 1e-4
"""Share of the bound that the search leaves unsought."""
MAX_TIMED = 8
"""Orders that are timed in full."""
MAX_POLISHED = 4
"""Of those, how many are made better by exchanges, where the step is small."""
MAX_EVERY_ORDER = 1000
"""Up to so many orders there may be for all of them to be timed."""
MAX_EXHAUSTED = 60
"""Forwards of a step for which that is looked into at all."""


class Timed(NamedTuple):
    """An order timed in full."""

    makespan_s: float
    words: list[Word]
    knobs: Knobs


def search_order(
    costs: StepCosts, num_sequences: int, cap: int | float, *, effort: int = EFFORT
) -> Order | None:
    """The order with the least makespan found; the same for equal arguments.

    Args:
        cap: bytes per rank that no order may exceed.
        effort: actions the search may walk through; the best orders are timed in full beyond it.

    Returns:
        None where no order fits under ``cap``.
    """
    enough = order_bound(costs, num_sequences, cap) * (1 + GOOD_ENOUGH)
    few = Trials(StepGraph(costs, min(num_sequences, 2 * most_live(costs, cap) + 3)), cap)
    ranked = _rank(few, num_sequences, enough, effort)
    same = few.graph.num_sequences == num_sequences
    whole = few if same else Trials(StepGraph(costs, num_sequences), cap)
    effort -= 0 if same else few.walked
    timed = _time(whole, ranked, enough, effort)
    if not timed:
        return None
    best = timed[0]
    if best.makespan_s > enough:
        best = _exhaust(whole, best, effort) or _polish(whole, timed, enough, effort)
    return whole.order(best.words, best.knobs)


def _rank(few: Trials, num_sequences: int, enough: float, effort: int) -> list[Knobs]:
    """Knobs whose orders fit, the fastest first by estimate."""
    found: dict[Knobs, float] = {}

    def look(knobs: Knobs) -> float:
        if knobs not in found:
            found[knobs] = few.estimate(knobs, num_sequences)
        return found[knobs]

    for knobs in starts(few):
        if look(knobs) <= enough or few.walked > effort / 2:
            break
    by_mix: dict[float, Knobs] = {}
    for knobs in sorted(found, key=found.__getitem__):
        by_mix.setdefault(knobs.mix, knobs)
    for best in list(by_mix.values())[:2]:
        moved = found[best] < INFINITY
        while moved:
            moved = False
            for trial in itertools.chain(moves(best), less_room(best)):
                if found[best] <= enough or few.walked > effort:
                    break
                if look(trial) < found[best]:
                    best, moved = trial, True
    return sorted((knobs for knobs in found if found[knobs] < INFINITY), key=found.__getitem__)


def _time(whole: Trials, ranked: list[Knobs], enough: float, effort: int) -> list[Timed]:
    """The first of ``ranked`` in full, fastest first; the strict and the serial order with them."""
    costs = whole.graph.costs
    always = [Knobs(0.0, strict_offsets(costs)), Knobs(0.0, serial_offsets(costs))]
    timed: list[Timed] = []
    for index, knobs in enumerate(dict.fromkeys([*ranked[:MAX_TIMED], *always])):
        if index > 1 and whole.walked > effort and knobs not in always:
            continue
        words = whole.words(knobs)
        if words is not None:
            timed.append(Timed(whole.walk(words, knobs).makespan_s, words, knobs))
            if timed[-1].makespan_s <= enough:
                break
    fit = (entry for entry in timed if entry.makespan_s < INFINITY)
    return sorted(fit, key=lambda entry: entry.makespan_s)


def _exhaust(whole: Trials, best: Timed, effort: int) -> Timed | None:
    """The best of all orders; None where there are too many."""
    if whole.graph.size > MAX_EXHAUSTED:
        return None
    left = max(0, effort - whole.walked) // (2 * whole.graph.size)
    every = list(every_order(whole.graph, whole.cap, min(left, MAX_EVERY_ORDER)))
    for words in every:
        time = whole.walk(words, best.knobs).makespan_s
        if time < best.makespan_s:
            best = Timed(time, list(words), best.knobs)
    return best if every else None


def _polish(whole: Trials, timed: list[Timed], enough: float, effort: int) -> Timed:
    """The best order after exchanges, where the effort allows all of one kind."""
    best = timed[0]
    if whole.walked + 4 * whole.graph.size**2 > effort:
        return best
    for _, start, knobs in timed[:MAX_POLISHED]:
        words = polish(
            whole.graph,
            start,
            whole.cap,
            lambda words, knobs=knobs: whole.walk(words, knobs).makespan_s,
            lambda time: time > enough and whole.walked < effort,
        )
        time = whole.walk(words, knobs).makespan_s
        if time < best.makespan_s:
            best = Timed(time, words, knobs)
    return best
