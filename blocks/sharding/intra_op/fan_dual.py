"""``FanDual``: costs passed along reads, from which a bound and a choice are read off.

Needs numpy.
"""

from collections.abc import Sequence

import numpy as np

from blocks.sharding.intra_op.fan import Fan
from blocks.sharding.intra_op.problem import Table


class FanDual:
    """A bound from below on what a graph costs, raised sweep by sweep.

    Chains run along the reads, through as many as there are; each variable's costs are split
    evenly among the chains it is on, and what a resharding costs among the readers that want it.
    Every chain for itself is solved by passing costs along it, so the sum of their least costs is
    a bound. A sweep visits the variables in order and back, and evens out at each what the chains
    through it cost.

    On the graphs of training steps the bound comes out equal to the best choice, or within rounding
    of it: what this relaxes is as good as never fractional there.

    Args:
        seconds: of every label of each variable.
        fans: reads; makers are earlier variables than their readers.

    Reference:
        Kolmogorov, "Convergent tree-reweighted message passing", 2006 (chains, and their
        averages); Erlenkotter, "A dual-based procedure for uncapacitated facility location", 1978
        (shares of what is paid once).
    """

    def __init__(self, seconds: Sequence[Table], fans: Sequence[Fan]) -> None:
        self.seconds, self.fans = list(seconds), list(fans)
        count = len(self.seconds)
        self.made: list[list[Fan]] = [[] for _ in range(count)]
        self.read: list[list[tuple[Fan, int]]] = [[] for _ in range(count)]
        for fan in fans:
            self.made[fan.maker].append(fan)
            for place, reader in enumerate(fan.readers):
                assert reader > fan.maker, (fan.maker, reader)
                self.read[reader].append((fan, place))
        ahead = [sum(len(fan.readers) for fan in own) for own in self.made]
        self.part = [1 / max(a, len(own), 1) for a, own in zip(ahead, self.read, strict=True)]
        self.bound = -np.inf
        self.least = [np.full(len(s), -np.inf) for s in self.seconds]

    def check_invariants(self) -> None:
        for fan in self.fans:
            fan.check_invariants()

    def costs(self, v: int) -> Table:
        """Of every label of a variable, with all that was told to it."""
        total = self.seconds[v].copy()
        for fan in self.made[v]:
            total += fan.to_maker.sum(axis=0)[fan.made.codes]
        for fan, place in self.read[v]:
            total += fan.to_reader[place, fan.wanted[place].codes]
        return total

    def sweep(self) -> float:
        """Once through all variables and back.

        Returns:
            The bound: no choice costs less.
        """
        for v, part in enumerate(self.part):
            self._share_out(v)
            costs = part * self.costs(v)
            for fan in self.made[v]:
                fan.tell_readers(costs)
        bound = 0.0
        for v in reversed(range(len(self.part))):
            self._share_out(v)
            costs = self.costs(v)
            self.least[v] = self.bound + (costs - costs.min())
            along = self.part[v] * costs
            for fan, place in self.read[v]:
                costs -= fan.tell_maker(place, along)
            bound += float(costs.min())
        self.bound = max(self.bound, bound)
        return self.bound

    def reprice(self, seconds: Sequence[Table]) -> None:
        """Other costs of the labels; what was passed along stays, and is soon right again."""
        self.seconds = list(seconds)
        self.bound = -np.inf

    def labels(self) -> list[int]:
        """A choice, variable by variable: the least given those before it and what all behind it
        cost at least."""
        chosen: list[int] = []
        for v, seconds in enumerate(self.seconds):
            total = seconds.copy()
            for fan in self.made[v]:
                total += fan.to_maker.sum(axis=0)[fan.made.codes]
            for fan, place in self.read[v]:
                row = fan.shares[place, fan.made.codes[chosen[fan.maker]]]
                total += row[fan.wanted[place].codes]
            chosen.append(int(np.argmin(total)))
        return chosen

    def _share_out(self, v: int) -> None:
        for fan in self.made[v]:
            if len(fan.readers) > 1:
                fan.share_out(self.part[v] * self.costs(v))
