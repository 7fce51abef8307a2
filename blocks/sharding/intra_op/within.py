"""``best_within``: the quickest choice of labels that keeps to a memory cap, by branch and bound.

Needs numpy.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from blocks.sharding.intra_op.eliminate import Bucket, Elimination, TableCache, eliminate
from blocks.sharding.intra_op.problem import Problem, Table


class Found(NamedTuple):
    """What a search came to.

    labels: of the best choice; None where there is none better than was known.
    complete: whether nothing better is left.
    """

    labels: tuple[int, ...] | None
    complete: bool


def best_within(
    problem: Problem,
    memory_cap: int | float,
    seconds_per_byte: int | float,
    least: int | float,
    *,
    max_nodes: int,
    max_entries: int | float,
    cache: TableCache | None = None,
) -> Found:
    """Choices of fewer than ``least`` seconds that keep to the cap, depth first.

    Every variable is eliminated three times over: by seconds, by bytes, and by seconds with a
    price on each byte. Read backwards, each elimination says exactly how much a label adds to the
    least that the rest can still come to; a choice may add no more than what the cap, or the best
    choice so far, leaves over. Of two ways to the same labels of all variables that matter later,
    one that is no quicker and no smaller is dropped.

    Args:
        seconds_per_byte: a price; the closer to the best one, the less is searched.
        max_nodes: labels tried before giving up.

    Reference:
        Kask and Dechter, "A general scheme for automatic generation of search heuristics from
        specification dependencies", 2001 (elimination as the bound of a search).
    """
    cache = cache or TableCache()
    bytes_alone = problem.only_memory()
    by = [
        eliminate(one, max_entries=max_entries, cache=cache)
        for one in (Problem(problem.seconds, problem.terms), bytes_alone)
    ]
    by.append(eliminate(problem.priced(seconds_per_byte), max_entries=max_entries, cache=cache))
    if any(elimination.terms for elimination in by):
        return Found(None, False)
    limits = [least, memory_cap, least + seconds_per_byte * memory_cap]
    return _Search(by, limits, seconds_per_byte, max_nodes).run()


class _Search:
    """Depth first through the variables, those eliminated last coming first."""

    def __init__(
        self,
        by: Sequence[Elimination],
        limits: Sequence[int | float],
        price: int | float,
        max_nodes: int,
    ) -> None:
        self.steps: list[tuple[Bucket, ...]] = list(
            zip(*(reversed(one.buckets) for one in by), strict=True)
        )
        self.limits, self.price = list(limits), price
        self.least = np.array([one.seconds for one in by])
        self.left = max_nodes
        self.labels = [0] * len(self.steps)
        self.best: tuple[int, ...] | None = None
        self.live = _live([step[0] for step in self.steps])
        self.seen: dict[tuple, list[tuple[float, float]]] = {}

    def run(self) -> Found:
        ways = [self._ways(0, self.least)]
        while ways:
            sums = next(ways[-1], None)
            if sums is None:
                ways.pop()
                continue
            self.left -= 1
            if self.left < 0:
                return Found(self.best, False)
            if len(ways) == len(self.steps):
                self._take(sums)
            elif not self._known(len(ways), sums):
                ways.append(self._ways(len(ways), sums))
        return Found(self.best, True)

    def _ways(self, depth: int, sums: Table) -> Iterator[Table]:
        """What the least comes to with each label that has room, that label being set."""
        costs = np.array([bucket.costs(self.labels) for bucket in self.steps[depth]])
        after = sums[:, None] + (costs - costs.min(axis=1, keepdims=True))
        variable = self.steps[depth][0].variable
        for at in np.argsort(after[2], kind="stable"):
            if (after[:, at] <= self._room()).all():
                self.labels[variable] = int(at)
                yield after[:, at]

    def _take(self, sums: Table) -> None:
        self.best = tuple(self.labels)
        self.limits[0] = float(sums[0])
        self.limits[2] = self.limits[0] + self.price * self.limits[1]

    def _room(self) -> Table:
        """What each of the three may come to, a hair less for seconds: better, not equal."""
        hair = 1e-12 * max(abs(self.limits[0]), 1e-300)
        tight = 1e-12 * max(abs(self.limits[2]), 1e-300)
        return np.array([self.limits[0] - hair, self.limits[1], self.limits[2] - tight])

    def _known(self, depth: int, sums: Table) -> bool:
        """Whether the same labels in sight were come to before, no slower and no larger."""
        key = (depth, *(self.labels[v] for v in self.live[depth]))
        seconds, held = float(sums[0]), float(sums[1])
        seen = self.seen.setdefault(key, [])
        if any(s <= seconds and b <= held for s, b in seen):
            return True
        seen[:] = [(s, b) for s, b in seen if s < seconds or b < held]
        seen.append((seconds, held))
        return False


def _live(buckets: Sequence[Bucket]) -> list[tuple[int, ...]]:
    """At every depth those decided before it that later costs depend on."""
    found: list[tuple[int, ...]] = []
    wanted: set[int] = set()
    for bucket in reversed(buckets):
        wanted |= {v for term in bucket.terms for v in term.variables}
        wanted.discard(bucket.variable)
        found.append(tuple(sorted(wanted)))
    return found[::-1]
