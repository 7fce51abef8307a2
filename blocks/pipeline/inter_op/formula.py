"""``Formula``: a step's time as a sum over stages and a largest stage. Needs numpy, no torch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from blocks.pipeline.inter_op.priced import Priced, Stage, least_option


class Formula(NamedTuple):
    """Seconds of a plan: the sum of what its stages and transfers add, plus the largest wait.

    adds: ``[k, i, m, o]`` by the number of stages from a stage to the end.
    waits: likewise; what the slowest stage makes the microbatches after the first one wait, of all
        stages or of those at an index.
    hops: added between neighbours, ``[bound, shape before, shape after]``.
    trips: by stages to the end, how often the sum from a stage to the end, and besides what that
        stage alone adds, is waited for; where one of these is more than the largest of ``waits``,
        it counts instead.
    first_s: ``[i, m]`` what a trip from a first stage has of it; None where all that it adds.
    """

    priced: Priced
    adds: Callable[[int], Any]
    waits: Callable[..., Any]
    hops: Any
    trips: Callable[[int], Sequence[tuple[float, float]]]
    first_s: Any = None

    def parts(self, stages: Sequence[Stage]) -> tuple[float, float]:
        """The sum and the wait of a plan."""
        total, wait, shape = 0.0, 0.0, None
        for to_end, stage in enumerate(reversed(stages), 1):
            if shape is not None:
                total = float(self.hops[stage[1], stage[2], shape]) + total
            own = passes = float(self.adds(to_end)[stage])
            if self.first_s is not None and stage[0] == 0:
                passes = float(self.first_s[stage[1], stage[2]])
            total = own + total
            wait = max(wait, float(self.waits(to_end, stage)))
            for trips, alone in self.trips(to_end):
                wait = max(wait, (total - (own - passes)) * trips + passes * alone)
            shape = stage[2]
        return total, wait

    def seconds(self, stages: Sequence[Stage]) -> float:
        """Of a plan."""
        return sum(self.parts(stages))

    def passes(self, adds: Any) -> Any:
        """Of what stages add, ``[k, i, m]``, that which trips have."""
        if self.first_s is None:
            return adds
        found = adds.copy()
        found[0] = self.first_s
        return found

    def room(self, to_end: int, cap: int | float, adds: Any, passes: Any) -> Any:
        """The most that sums from stages to the end may be whose trips keep to a cap on the wait.

        Args:
            adds: what these stages add.
            passes: that which trips have of it.
        """
        import numpy as np

        able, room = np.isfinite(adds), np.full(np.shape(adds), np.inf)
        once = np.subtract(adds, passes, out=np.zeros(room.shape), where=able)
        passes = np.where(able, passes, 0.0)
        for trips, alone in self.trips(to_end):
            np.minimum(room, (cap - passes * alone) / trips + once, out=room)
        return room


def alpa(priced: Priced) -> Formula:
    """``sum + (B - 1) pace``: the time of one microbatch through all stages, and as often as there
    are others the time between two of them.

    Both include the share of a step's once-only work. The pace is that of the slowest stage, or,
    where forwards and backwards alternate, of a round trip from a stage to the end and back divided
    by the microbatches the stage holds, which is slower where transfers are. Where backwards are
    split, all stages but the last add ``t - 2w``: their weight gradients fill the bubble (exact for
    equal stages).

    Reference: Zheng et al. 2022, Alpa, equation 2.
    """
    import numpy as np

    rest, cells = priced.count - 1, priced.cells
    pace = priced.whole_s + cells["once_s"] / priced.count
    through = pace
    if priced.flow.splits:
        through = np.maximum(pace - 2 * cells["weight_s"], 0.0)
    waits = rest * pace

    def trips(to_end: int) -> Sequence[tuple[float, float]]:
        held = priced.flow.ahead(to_end, 2 * to_end)  # of as many microbatches as it would hold
        return ((rest / held, 0.0),)

    return Formula(
        priced,
        lambda to_end: pace if to_end == 1 else through,
        lambda to_end, at=...: waits[at],
        priced.hops_s,
        trips if priced.flow.alternates and rest else lambda to_end: (),
    )


def trip_bound(priced: Priced) -> Formula | None:
    """A formula no simulated plan comes below; None where the schedule's order is not known.

    It is the length of one path through the step: the first microbatch's way to the end and back,
    and on it, at one stage, the ways from its first backward to its last. A stage has run no more
    forwards than the ``p`` it may hold when its first backward can start, so what is left for it to
    do follows: ``B - 1`` passes of one kind and ``B - p`` of the other. The same holds backwards in
    time.

    Where they alternate, the forward that follows a stage's backward ``m`` is ``m + p``. So from
    one backward a path has two ways on: past that forward to the stage's own next backward, one
    microbatch later and as long as both passes; or with that forward to the end and back, ``p``
    microbatches later and as long as the round trip. The latter ``a`` times after the former
    ``B - 1 - a p`` times ends at the last backward and asks for no microbatch after the last, for
    every ``a`` from 1 to ``(B - 1) // p``; its length is linear in ``a``, so both ends are enough.
    """
    import numpy as np

    cells, count = priced.cells, priced.count
    forward, backward, weight = (cells[n] for n in ("forward_s", "backward_s", "weight_s"))
    flow, depth = priced.flow, priced.depth
    passes, last = priced.whole_s, cells["once_s"]
    if flow.splits:
        if depth is None:
            return None
        passes, last = forward + backward, cells["once_s"] + weight
    else:
        backward = backward + weight
    adds = passes.copy()
    adds[0] = adds[0] + last[0]

    def waits(to_end: int, at: Any = ...) -> Any:
        kept = flow.ahead(to_end, count)
        late = (count - 1) * backward[at] + (count - kept) * forward[at]
        if flow.splits:
            assert depth is not None
            behind = max(0, count - 1 - flow.lag(depth - to_end))
            return late + behind * weight[at]
        early = (count - 1) * forward[at] + (count - kept) * backward[at]
        return np.maximum(late, early)

    def trips(to_end: int) -> Sequence[tuple[float, float]]:
        held = flow.ahead(to_end, count)
        most = (count - 1) // held
        return [(float(a), float(count - 1 - a * held)) for a in sorted({1, most}) if 0 < a <= most]

    least = least_option(np.where(priced.exists[0], passes[0], np.inf))
    return Formula(
        priced,
        lambda to_end: adds,
        waits,
        priced.hops_s,
        trips if flow.alternates else lambda to_end: (),
        np.where(np.isfinite(least), least, 0.0) if flow.alternates else None,
    )
