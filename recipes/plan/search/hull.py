"""``Hull``: choices of strategies on the lower hull of seconds and bytes. Needs numpy."""

import itertools
from collections.abc import Callable
from typing import NamedTuple

from blocks.sharding import MeshCost, TensorValue
from blocks.sharding.intra_op import Posed, Problem, minimise
from recipes.plan.layers.reduced import Reduced
from recipes.plan.search.layer_price import layer_prices, total_price

Choices = tuple[tuple[int, ...], ...]
"""Of every node, what each mesh axis cuts."""


DEAR = 100.0
"""A price of memory at which all of it costs so many times the step; little else counts then."""


class Hull:
    """Choices by what the whole model takes and holds under them."""

    def __init__(
        self,
        posed: Posed,
        reduced: Reduced,
        cost: MeshCost,
        num_microbatches: int,
        in_flight: float,
        held: Callable[[TensorValue], float],
    ) -> None:
        self.posed, self.reduced, self.cost = posed, reduced, cost
        self.num_microbatches, self.in_flight, self.held = num_microbatches, in_flight, held

    def best(self, points: int) -> list[Choices]:
        """Choices of up to ``points`` corners of the hull, the fastest first."""
        problem = self.posed.problem
        found = [self._point(problem.priced(0.0))]
        if points > 1:
            dear = DEAR * found[0].seconds / max(found[0].size, 1.0)
            small = self._point(problem.priced(dear), found[0].labels)
            found += [small] * (small.size < found[0].size)
        while 1 < len(found) < points:
            pairs = list(itertools.pairwise(found))
            fast, small = max(pairs, key=lambda p: (p[1].seconds - p[0].seconds) * _less(p))
            if small.seconds <= fast.seconds:
                break
            price = (small.seconds - fast.seconds) / (fast.size - small.size)
            between = self._point(problem.priced(price), small.labels)
            line = fast.seconds + price * fast.size
            if between.seconds + price * between.size >= line * (1 - 1e-6):
                break
            found = sorted({*found, between}, key=lambda p: -p.size)
        return list(dict.fromkeys(point.choices for point in found))

    def _point(self, problem: Problem, start: tuple[int, ...] | None = None) -> "Corner":
        hints = self.posed.hints
        labels = minimise(problem, hints=hints, start=start, sweeps=0).labels
        strategies = self.posed.strategies(labels)
        prices = layer_prices(
            self.reduced.graph, self.reduced.layer_of, strategies, self.cost, self.held
        )
        total = total_price(prices, self.reduced.counts)
        seconds = total.seconds("forward") + total.seconds("backward")
        seconds += total.seconds("update") / self.num_microbatches
        size = total.fixed_bytes + self.in_flight * total.flight_bytes
        return Corner(seconds, size, labels, tuple(s.choices for s in strategies))


class Corner(NamedTuple):
    """What the whole model takes and holds under some labels."""

    seconds: float
    size: float
    labels: tuple[int, ...]
    choices: Choices


def _less(pair: tuple[Corner, Corner]) -> float:
    return pair[0].size - pair[1].size
