"""``search_order``: the best order found for given slices under a memory cap. Needs no torch.

On every rank forwards and backwards each keep their own order (sequences ascending, slices
ascending or descending), so a program is a merge of two streams and its memory does not depend on
time. A merge is described by how far forwards run ahead of backwards (``offsets``) and in what
that is ``counted``: in actions, as 1F1B does, in work, which keeps ranks in step where slices cost
unequally, or in bytes, which fills memory where slices keep unequally much. The search tries
offsets that fall from the first rank to the last, up to what the cap allows, and then moves the
offsets of single ranks. Strict one-forward-one-backward is among the merges tried, so the answer
is never worse than it where it fits.

Few sequences stand for many during the search: after the first ones every sequence takes the same
time. The best orders are then timed in full.
"""

import itertools
from typing import NamedTuple

from blocks.pipeline.plan.bound import order_bound
from blocks.pipeline.plan.exhaust import every_order
from blocks.pipeline.plan.merge import Counted, Word
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

EFFORT = 1_000_000
"""Actions a search may walk through; a third of a second or so."""
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
    search = OrderSearch(costs, num_sequences, cap)
    search.look_on(effort)
    return search.finish(effort)


class OrderSearch:
    """A search that can be interrupted.

    bound_s: what no order beats.
    estimate_s: the least makespan so far, by the estimate from few sequences.
    """

    def __init__(self, costs: StepCosts, num_sequences: int, cap: int | float) -> None:
        self.costs, self.num_sequences, self.cap = costs, num_sequences, cap
        self.bound_s = order_bound(costs, num_sequences, cap)
        self.estimate_s = INFINITY
        self._enough = self.bound_s * (1 + GOOD_ENOUGH)
        few = min(num_sequences, 2 * most_live(costs, cap) + 2)
        self._few = Trials(StepGraph(costs, few), cap)
        self._found: dict[Knobs, float] = {}
        self._starts = starts(self._few)

    @property
    def walked(self) -> int:
        """What it has cost until now, in actions."""
        return self._few.walked

    def look(self, num_orders: int) -> bool:
        """Estimate some more of the orders to start from; false where none was left."""
        for _ in range(num_orders):
            knobs = next(self._starts, None)
            if knobs is None:
                return False
            if self._estimate(knobs) <= self._enough:
                break
        return True

    def look_on(self, effort: int) -> None:
        """Estimate orders to start from with half the effort, and move the best with the rest."""
        while self.estimate_s > self._enough and self.walked < effort / 2 and self.look(1):
            pass
        by_counted: dict[Counted, Knobs] = {}
        for knobs in self._ranked():
            by_counted.setdefault(knobs.counted, knobs)
        for best in list(by_counted.values())[:2]:
            moved = True
            while moved:
                moved = False
                for trial in itertools.chain(moves(best), less_room(best)):
                    if self.estimate_s <= self._enough or self.walked > effort:
                        return
                    if self._estimate(trial) < self._found[best]:
                        best, moved = trial, True

    def finish(self, effort: int) -> Order | None:
        """The best order in full; None where none fits."""
        same = self._few.graph.num_sequences == self.num_sequences
        graph = self._few.graph if same else StepGraph(self.costs, self.num_sequences)
        whole = self._few if same else Trials(graph, self.cap)
        effort -= 0 if same else self.walked
        timed = _time(whole, self._ranked(), self._enough, effort)
        if not timed:
            return None
        best = timed[0]
        if best.makespan_s > self._enough:
            best = _exhaust(whole, best, effort) or _polish(whole, timed, self._enough, effort)
        return whole.order(best.words, best.knobs)

    def _estimate(self, knobs: Knobs) -> float:
        if knobs not in self._found:
            time = self._few.estimate(knobs, self.num_sequences)
            self._found[knobs] = time
            self.estimate_s = min(self.estimate_s, time)
        return self._found[knobs]

    def _ranked(self) -> list[Knobs]:
        """Knobs whose orders fit, the fastest first."""
        fit = (knobs for knobs, time in self._found.items() if time < INFINITY)
        return sorted(fit, key=self._found.__getitem__)


def _time(whole: Trials, ranked: list[Knobs], enough: float, effort: int) -> list[Timed]:
    """Orders in full, fastest first: the first of ``ranked``, one at least, as the effort allows.

    The strict order is timed where it was found wanting by estimate only, the serial one where
    nothing else fits.
    """
    costs = whole.graph.costs
    strict, serial = (
        Knobs(Counted.ACTIONS, offsets)
        for offsets in (strict_offsets(costs), serial_offsets(costs))
    )
    timed: list[Timed] = []
    for knobs in dict.fromkeys([*ranked[:MAX_TIMED], strict, serial]):
        if timed and (timed[-1].makespan_s <= enough or whole.walked > effort):
            break
        words = whole.words(knobs)
        time = INFINITY if words is None else whole.walk(words, knobs).makespan_s
        if words is not None and time < INFINITY:
            timed.append(Timed(time, words, knobs))
    return sorted(timed, key=lambda entry: entry.makespan_s)


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
