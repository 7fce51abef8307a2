"""``best_first``: partitions in the order of their bounds, simulated. Needs numpy, no torch."""

import heapq
import itertools
from typing import Any, NamedTuple

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.closed_formula import Plan
from blocks.pipeline.inter_op.formula import trip_bound
from blocks.pipeline.inter_op.makespans import makespans
from blocks.pipeline.inter_op.priced import Priced
from blocks.pipeline.inter_op.step_bound import step_bounds
from blocks.pipeline.inter_op.suffixes import suffixes

TOGETHER = 256
"""Plans simulated at once."""


class Proof(NamedTuple):
    """What a search came to.

    best: the best plan found that is better than what was known, with its makespan, or None.
    bound_s: no plan below it is left.
    num_expanded: partial plans that were continued.
    """

    best: tuple[Plan, float] | None
    bound_s: float
    num_expanded: int


def best_first(
    priced: Priced,
    budget: Budget,
    max_stages: int,
    *,
    below: float,
    effort: int,
) -> Proof:
    """The plan with the least simulated makespan among those below ``below``.

    Partial plans, from the first stage on, with a number of stages to come, are continued in the
    order of what they could come to at best: the longest chain and the least trips through the
    stages they have, and the least such chain and trip of any rest. Every plan left out has a bound
    at least as large as the answer, so where the search comes to its end the answer is the best.

    Args:
        below: what the best plan known takes.
        effort: partial plans to continue at most.
    """
    search, expanded = _Search(priced, budget, max_stages, below), 0
    while search.heap and expanded < effort and search.heap[0][0] < search.best_s:
        search.expand(heapq.heappop(search.heap)[-1])
        expanded += 1
    search.simulate()
    left = min((item[0] for item in search.heap), default=float("inf"))
    return Proof(search.best, min(left, search.best_s), expanded)


class _Node(NamedTuple):
    """The first stages of a plan.

    stages: them.
    layer: bound after them.
    left: state of the devices that are left.
    to_come: stages that follow.
    sums: by chain what the stages add to paths, with the hops between them.
    paths: by chain the longest path that ends with one of them.
    last: by chain what comes after all paths.
    total: what the stages add to the trip bound, with the hops between them.
    starts: what was in ``total`` before each stage, and what is done once for the first; and what
        trips have of the stage.
    waits: the largest waits of the trip bound; two that add up where passes wait apart.
    """

    stages: Plan
    layer: int
    left: int
    to_come: int
    sums: tuple[float, ...]
    paths: tuple[float, ...]
    last: tuple[float, ...]
    total: float = 0.0
    starts: tuple[tuple[float, float], ...] = ()
    waits: tuple[float, float] = (0.0, 0.0)


class _Search:
    """Nodes by bound, and the best plan simulated."""

    def __init__(self, priced: Priced, budget: Budget, max_stages: int, below: float) -> None:
        import numpy as np

        self.priced, self.best, self.best_s = priced, None, below
        self.bounds = step_bounds(priced, budget, max_stages, below=below)
        self.chains, self.budget = self.bounds.chains, self.bounds.tables[0].budget
        tables = self.bounds.tables
        self.rest = [[self.budget.at_most(a) for a in table.after] for table in tables]
        self.trip = trip_bound(priced)
        self.trip_rest: list[Any] = []
        if self.trip is not None and self.bounds.totals:
            adds, most = self.trip.adds(2), max(self.bounds.totals)
            costs = lambda to_end: (priced.least(adds, to_end), None)  # noqa: E731
            found = suffixes(costs, self.trip.hops, self.budget, most)
            self.trip_rest = [self.budget.at_most(after) for after in found.after]
        self.before = np.stack(self.budget.before)  # [m, u]
        self.heap: list[tuple[float, int, int, _Node]] = []
        self._number = itertools.count()
        self._ready: dict[int, list[Plan]] = {}
        none = (0.0,) * len(self.chains)
        for depth, bound in self.bounds.totals.items():
            if depth == priced.depth or priced.depth is None:
                root = _Node((), 0, self.budget.num_states - 1, depth, none, none, none)
                heapq.heappush(self.heap, (bound, 0, next(self._number), root))

    def expand(self, node: _Node) -> None:
        """Every next stage whose bound is below the best plan: pushed, or simulated soon."""
        import numpy as np

        priced, k, rest = self.priced, node.layer, node.to_come - 1
        shape = node.stages[-1][2] if node.stages else None
        states = self.before[:, node.left]
        every = np.arange(len(states))
        fits = priced.fits(node.to_come)[k]
        bound = np.where(fits, 0.0, np.inf)  # [i, m, o]
        sums, paths, lasts = [], [], []
        for number, chain in enumerate(self.chains):
            after = self.rest[number][rest][every, :, states].T[:, :, None]  # [i, m, 1]
            start = node.sums[number] + self._hop(chain.send, k, shape)
            sums.append(start + chain.step[k])
            paths.append(np.maximum(node.paths[number], start + chain.head[k]))
            last = node.last[number] if node.stages else chain.last
            lasts.append(np.broadcast_to(last, fits.shape))
            np.maximum(bound, np.maximum(paths[-1], sums[-1] + after) + last, out=bound)
        trip = None
        if self.trip is not None:
            trip = self._trips(node, states, self._hop(self.trip.hops, k, shape))
            np.maximum(bound, trip[0], out=bound)
        for i, m, o in np.argwhere(bound < self.best_s).tolist():
            stages = (*node.stages, (k, i, m, o))
            if not rest:
                self._ready.setdefault(len(stages), []).append(stages)
                continue
            child = _Node(
                stages,
                i,
                int(states[m]),
                rest,
                tuple(float(values[i, m, o]) for values in sums),
                tuple(float(values[i, m, o]) for values in paths),
                tuple(float(values[i, m, o]) for values in lasts),
            )
            if trip is not None:
                _, total, start, passes, waits = trip
                waits = (float(waits[0][i, m, o]), float(waits[1][i, m, o]))
                starts = (*node.starts, (float(start[i, m, o]), float(passes[i, m, o])))
                child = child._replace(total=float(total[i, m, o]), starts=starts, waits=waits)
            item = (float(bound[i, m, o]), rest, next(self._number), child)
            heapq.heappush(self.heap, item)
        if sum(map(len, self._ready.values())) >= TOGETHER:
            self.simulate()

    def _hop(self, send: Any, k: int, shape: int | None) -> Any:
        """``[m, 1]`` seconds from the stage before."""
        return 0.0 if shape is None else send[k, shape][:, None]

    def _trips(
        self, node: _Node, states: Any, hop: Any
    ) -> tuple[Any, Any, Any, Any, tuple[Any, Any]]:
        """Bounds by the next stage; and total, start, passes and waits of the child."""
        import numpy as np

        trip, k, rest = self.trip, node.layer, node.to_come - 1
        assert trip is not None
        adds = trip.adds(node.to_come)[k]
        start = node.total + hop + np.zeros(adds.shape)
        passes = adds
        if not node.stages and trip.first_s is not None:  # what is done once is in no trip
            passes = np.broadcast_to(trip.first_s[:, :, None], adds.shape)
            start = start + adds - passes
        total = node.total + hop + adds
        after = self.trip_rest[rest] if rest < len(self.trip_rest) else None
        if after is None:
            whole = np.full(adds.shape, np.inf)
        else:
            whole = total + after[np.arange(len(states)), :, states].T[:, :, None]
        first, second = self._waits(node.to_come, k)
        waits = np.maximum(node.waits[0], first), np.maximum(node.waits[1], second)
        wait = waits[0] + waits[1]
        starts = [*node.starts, (start, passes)]
        for to_end, (began, own) in enumerate(reversed(starts), node.to_come):
            for trips, alone in trip.trips(to_end):
                np.maximum(wait, (whole - began) * trips + own * alone, out=wait)
        return whole + wait, total, start, passes, waits

    def _waits(self, to_end: int, k: int) -> tuple[Any, Any]:
        """Of stages at ``k``; of forwards and backwards where they wait apart."""
        assert self.trip is not None
        if self.priced.schedule == "gpipe":
            forward, rest = self.priced.cells["forward_s"][k], self.priced.count - 1
            return rest * forward, rest * (self.priced.whole_s[k] - forward)
        waits = self.trip.waits(to_end, k)
        return waits, 0.0 * waits

    def simulate(self) -> None:
        """The plans that are complete."""
        for plans in self._ready.values():
            seconds = makespans(self.priced, plans)
            index = int(seconds.argmin())
            if seconds[index] < self.best_s:
                self.best_s = float(seconds[index])
                self.best = (plans[index], self.best_s)
        self._ready.clear()
