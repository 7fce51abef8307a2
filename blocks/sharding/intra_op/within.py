"""``best_within``: the quickest choice of labels that keeps to a memory cap. Needs numpy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from blocks.sharding.intra_op.eliminate import Bucket, Elimination, eliminate
from blocks.sharding.intra_op.problem import Problem, Table
from blocks.sharding.intra_op.table_cache import TableCache


class Found(NamedTuple):
    """What a search came to.

    labels: of the best choice; None where there is none better than was known.
    bound: no better choice takes fewer seconds; infinite where there is no better one.
    """

    labels: tuple[int, ...] | None
    bound: float


def best_within(
    problem: Problem,
    memory_cap: int | float,
    seconds_per_byte: int | float,
    least: int | float,
    *,
    max_ways: int,
    max_entries: int | float,
    cache: TableCache | None = None,
) -> Found:
    """Choices of fewer than ``least`` seconds that keep to the cap, all at once, variable by
    variable.

    Every variable is eliminated three times over: by seconds, by bytes, and by seconds with a
    price on each byte. Read backwards, each elimination says exactly how much a label adds to the
    least that the rest can still come to; a choice may add no more than what the cap, or the best
    choice so far, leaves over. Of two ways to the same labels of all variables that matter later,
    one that is no quicker and no smaller is dropped.

    Args:
        seconds_per_byte: a price; the closer to the best one, the less is searched.
        max_ways: kept at a time; where there are more, those that promise most, and what the
            others promise becomes the bound.

    Reference:
        Kask and Dechter, "A general scheme for automatic generation of search heuristics from
        specification dependencies", 2001 (elimination as the bound of a search).
    """
    cache = cache or TableCache()
    alone = Problem(problem.seconds, problem.terms)
    every = (alone, problem.only_memory(), problem.priced(seconds_per_byte))
    by = [eliminate(one, max_entries=max_entries, cache=cache) for one in every]
    if any(elimination.terms for elimination in by):
        return Found(None, -np.inf)
    found = Found(None, np.inf)
    for ways in (max(1, max_ways // 50), max_ways):  # a few first, for a choice to beat
        limits = np.array([least, memory_cap, least + seconds_per_byte * memory_cap])
        search = _Search(problem.num_labels, by, limits, ways)
        labels, dropped = search.run()
        if labels is not None:
            least = min(least, problem.value(labels))
            found = Found(labels, np.inf)
        bound = dropped - seconds_per_byte * memory_cap
        found = Found(found.labels, bound if bound < least else np.inf)
        if found.bound == np.inf:
            break
    return found


class _Ways(NamedTuple):
    """Choices for the variables so far.

    sums: seconds, bytes and priced seconds that each can still come to, at least; a row each.
    seen: its labels of the variables that matter later, a column each.
    """

    sums: Table
    seen: npt.NDArray[np.intp]


class _Search:
    """Through the variables, those eliminated last coming first."""

    def __init__(
        self, num_labels: Sequence[int], by: Sequence[Elimination], limits: Table, max_ways: int
    ) -> None:
        self.num_labels, self.limits, self.max_ways = num_labels, limits, max_ways
        self.steps: list[tuple[Bucket, ...]] = list(
            zip(*(reversed(one.buckets) for one in by), strict=True)
        )
        self.live = _live([step[0] for step in self.steps])
        self.least = np.array([one.seconds for one in by])
        self.room = limits - 1e-12 * np.array([abs(limits[0]), 0.0, abs(limits[2])])
        self.dropped = np.inf

    def run(self) -> tuple[tuple[int, ...] | None, float]:
        """The best choice with room, and the least priced seconds of what was dropped unseen."""
        ways = _Ways(self.least[:, None], np.zeros((1, 0), dtype=np.intp))
        history = []
        for depth in range(len(self.steps)):
            ways, came_from, label = self._step(depth, ways)
            history.append((came_from, label))
            if not ways.sums.size:
                return None, self.dropped
        labels = [0] * len(self.num_labels)
        at = int(np.argmin(ways.sums[0]))
        for step, (came_from, label) in zip(reversed(self.steps), reversed(history), strict=True):
            labels[step[0].variable] = int(label[at])
            at = int(came_from[at])
        return tuple(labels), self.dropped

    def _step(
        self, depth: int, ways: _Ways
    ) -> tuple[_Ways, npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        v = self.steps[depth][0].variable
        column = {u: at for at, u in enumerate(self.live[depth])}
        after = np.stack([self._costs(bucket, ways.seen, column) for bucket in self.steps[depth]])
        after += ways.sums[:, :, None]
        came_from, label = np.nonzero((after <= self.room[:, None, None]).all(axis=0))
        sums = after[:, came_from, label]
        later = self.live[depth + 1] if depth + 1 < len(self.live) else ()
        columns = [label if u == v else ways.seen[came_from, column[u]] for u in later]
        seen = np.stack(columns, axis=1) if columns else np.zeros((len(label), 0), dtype=np.intp)
        kept = self._undominated(sums, seen, [self.num_labels[u] for u in later])
        if len(kept) > self.max_ways:
            ranked = kept[np.argsort(sums[2, kept], kind="stable")]
            self.dropped = min(self.dropped, float(sums[2, ranked[self.max_ways]]))
            kept = ranked[: self.max_ways]
        return _Ways(sums[:, kept], seen[kept]), came_from[kept], label[kept]

    def _costs(self, bucket: Bucket, seen: npt.NDArray[np.intp], column: dict[int, int]) -> Table:
        """How much more each label of the variable comes to than its best; a row a way."""
        total = np.zeros((len(seen), self.num_labels[bucket.variable]))
        for variables, seconds in bucket.terms:
            own = variables.index(bucket.variable)
            others = tuple(seen[:, column[u]] for u in variables if u != bucket.variable)
            total += np.moveaxis(seconds, own, -1)[others]
        return total - total.min(axis=1, keepdims=True)

    @staticmethod
    def _undominated(
        sums: Table, seen: npt.NDArray[np.intp], sizes: Sequence[int]
    ) -> npt.NDArray[np.intp]:
        """Indices of the ways than which none that sees the same is as quick and as small."""
        if not len(seen):
            return np.zeros(0, dtype=np.intp)
        if np.prod(np.array(sizes, dtype=float)) < 2**62:
            group = np.zeros(len(seen), dtype=np.int64)
            for at, size in enumerate(sizes):
                group = group * size + seen[:, at]
        else:
            group = np.unique(seen, axis=0, return_inverse=True)[1].ravel().astype(np.int64)
        order = np.lexsort((sums[1], sums[0], group))
        _, number = np.unique(group[order], return_inverse=True)
        _, size = np.unique(sums[1][order], return_inverse=True)
        # Later groups lie lower, so that the least so far is one of the same group.
        height = size.ravel() - number.ravel() * (int(size.max()) + 1)
        lowest = np.minimum.accumulate(height)
        first = np.ones(len(order), dtype=bool)
        first[1:] = height[1:] < lowest[:-1]
        return order[first]


def _live(buckets: Sequence[Bucket]) -> list[tuple[int, ...]]:
    """At every depth those decided before it that later costs depend on."""
    found: list[tuple[int, ...]] = []
    wanted: set[int] = set()
    for bucket in reversed(buckets):
        wanted |= {v for term in bucket.terms for v in term.variables}
        wanted.discard(bucket.variable)
        found.append(tuple(sorted(wanted)))
    return found[::-1]
