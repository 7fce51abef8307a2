"""``Formula``: a step's time as a sum over stages and a largest stage. Needs numpy, no torch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from blocks.pipeline.inter_op.priced import Priced, Stage


class Formula(NamedTuple):
    """Seconds of a plan: the sum of what its stages and transfers add, plus the largest wait.

    adds: ``[k, i, m, o]`` by the number of stages from a stage to the end.
    waits: likewise; what the slowest stage makes the microbatches after the first one wait, of all
        stages or of those at an index.
    hops: added between neighbours, ``[bound, shape before, shape after]``.
    trips: by stages to the end, how many times the sum from a stage to the end is waited for; where
        that is more than the largest of ``waits``, it counts instead.
    once_s: the most that ``adds`` has for a first stage beside its passes; no part of any trip.
    """

    priced: Priced
    adds: Callable[[int], Any]
    waits: Callable[..., Any]
    hops: Any
    trips: Callable[[int], float]
    once_s: float = 0.0

    def parts(self, stages: Sequence[Stage]) -> tuple[float, float]:
        """The sum and the wait of a plan."""
        total, wait, shape = 0.0, 0.0, None
        for to_end, stage in enumerate(reversed(stages), 1):
            if shape is not None:
                total = float(self.hops[stage[1], stage[2], shape]) + total
            total = float(self.adds(to_end)[stage]) + total
            wait = max(wait, float(self.waits(to_end, stage)))
            trip = total - self.once_s if to_end == len(stages) else total
            wait = max(wait, trip * self.trips(to_end))
            shape = stage[2]
        return total, wait

    def seconds(self, stages: Sequence[Stage]) -> float:
        """Of a plan."""
        return sum(self.parts(stages))


def alpa(priced: Priced) -> Formula:
    """``sum + (B - 1) pace``: the time of one microbatch through all stages, and as often as there
    are others the time between two of them.

    Both include the share of a step's once-only work. The pace is that of the slowest stage, or,
    under 1F1B, of a round trip from a stage to the end and back divided by the microbatches the
    stage holds, which is slower where transfers are. Where backwards are split, all stages but the
    last add ``t - 2w``: their weight gradients fill the bubble (exact for equal stages).

    Reference: Zheng et al. 2022, Alpa, equation 2.
    """
    import numpy as np

    rest, cells = priced.count - 1, priced.cells
    pace = priced.whole_s + cells["once_s"] / priced.count
    through = pace
    if priced.flow.splits:
        through = np.maximum(pace - 2 * cells["weight_s"], 0.0)
    waits = rest * pace
    trips = priced.schedule == "one_f_one_b"
    return Formula(
        priced,
        lambda to_end: pace if to_end == 1 else through,
        lambda to_end, at=...: waits[at],
        priced.hops_s,
        lambda to_end: rest / to_end if trips else 0.0,
    )


def trip_bound(priced: Priced) -> Formula | None:
    """A formula no simulated plan comes below; None where the schedule's order is not known.

    A stage has run no more forwards than it may hold when its first backward can start, after the
    first microbatch went to the end and came back; what is left for it to do follows. The same
    holds backwards in time. So with ``p`` microbatches held a plan takes at least a microbatch
    through all stages and, of any stage, ``B - 1`` passes of one kind and ``B - p`` of the other.
    Under 1F1B the forward ``p`` later follows the backward, so whole trips add up as well.
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

    def trips(to_end: int) -> float:
        return float((count - 1) // min(to_end, count))

    return Formula(
        priced,
        lambda to_end: adds,
        waits,
        priced.hops_s,
        trips if priced.schedule == "one_f_one_b" else lambda to_end: 0.0,
        float(last[0].max(where=priced.exists[0], initial=0.0)),
    )
