"""``DoesNotFit``: no plan keeps to the limits, and by how much. Needs numpy, no torch."""

from collections.abc import Sequence
from typing import Any

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.closed_formula import trace
from blocks.pipeline.inter_op.priced import Priced, least_option
from blocks.pipeline.inter_op.shortage import Shortage
from blocks.pipeline.inter_op.suffixes import Suffixes, suffixes


class DoesNotFit(ValueError):
    """No plan keeps to the limits; the message says which one and by how much.

    limit: ``memory`` or ``devices``.
    shortfall_bytes: by how much the caps must rise at the least; 0 where it is not memory.
    shortage: the stage that needs so much; None where it is not memory, or not known.
    """

    def __init__(
        self,
        message: str,
        limit: str,
        shortfall_bytes: float = 0.0,
        shortage: Shortage | None = None,
    ) -> None:
        super().__init__(message)
        self.limit, self.shortfall_bytes, self.shortage = limit, shortfall_bytes, shortage

    @classmethod
    def by(cls, shortfall_bytes: float | None, what: object) -> "DoesNotFit":
        """The error for plans of which even ``what``, a text or a shortage, misses so much; None
        where there are none."""
        if shortfall_bytes is None:
            hint = "give the table other shapes or options, or allow idle devices"
            message = f"stages: expected some that use the devices as asked, got none; {hint}"
            return cls(message, "devices")
        hint = "use more devices or microbatches, recomputation, or options that shard further"
        message = (
            f"memory_cap_bytes: expected at least {shortfall_bytes:.6g} more, got too little even "
            f"for {what}; {hint}"
        )
        shortage = what if isinstance(what, Shortage) else None
        return cls(message, "memory", shortfall_bytes, shortage)


def why_not(tried: Sequence[tuple[Priced, int]], budget: Budget) -> DoesNotFit:
    """The error for what was tried, each with the most stages a plan may have.

    The least excess over the caps is the program over stages again, with the largest excess of a
    stage as the value.
    """
    found: list[tuple[float, int, Priced, int | None]] = []
    least_held = {priced.count for priced, _ in tried if priced.schedule == "one_f_one_b"}
    for priced, max_stages in tried:
        if priced.count in least_held and priced.schedule != "one_f_one_b":
            continue  # no schedule holds fewer microbatches at any stage
        depths = range(1, max_stages + 1) if priced.flow.follows_depth else [None]
        for depth in depths:
            over = [_over(priced, n, depth) for n in range(1, (depth or max_stages) + 1)]
            for stages, least in largest_of_least(over, budget, len(over)).items():
                if depth in (None, stages):
                    found.append((least, stages, priced, depth))
    if not found:
        return DoesNotFit.by(None, "")
    least, num_stages, priced, depth = min(found, key=lambda one: one[0])
    return DoesNotFit.by(least, _shortage(priced, num_stages, depth, budget))


def _over(priced: Priced, to_end: int, depth: int | None) -> Any:
    """Bytes over the caps, ``[k, i, m, o]``."""
    import numpy as np

    needed = priced.bytes_of(priced.in_flight(to_end, depth)) - priced.caps
    return np.where(priced.exists, needed, np.inf)


def _shortage(priced: Priced, num_stages: int, depth: int | None, budget: Budget) -> Shortage:
    """Of the plan of so many stages that is over the caps by least."""
    import numpy as np

    over = [_over(priced, n, depth) for n in range(1, num_stages + 1)]
    found = _suffixes(over, budget, num_stages)

    def row(to_end: int, k: int, m: int) -> tuple[Any, Any]:
        values = over[to_end - 1][k, :, m]
        return np.where(np.isfinite(values), 0.0, np.inf), values

    num_bounds, num_shapes = over[0].shape[0], over[0].shape[2]
    plan = trace(found, row, np.zeros((num_bounds, num_shapes, num_shapes)), num_stages)
    at = max(range(num_stages), key=lambda s: over[num_stages - s - 1][plan[s]])
    (k, i, m, o), table = plan[at], priced.table
    cost = table.cost(k, i, m, o)
    return Shortage(
        *(at, num_stages, priced.schedule, priced.count),
        *(table.bounds[k], table.bounds[i], table.shapes[m], table.options[o]),
        *(cost.fixed_bytes, cost.microbatch_bytes, cost.transient_bytes),
        *(priced.in_flight(num_stages - at, depth), float(priced.caps[m, 0])),
    )


def largest_of_least(values: Any, budget: Budget, max_stages: int) -> dict[int, float]:
    """By number of stages the least largest value of a stage, 0 at the least.

    Args:
        values: ``[k, i, m, o]``, for all or a list by the number of stages to the end.
    """
    found = _suffixes(values, budget, max_stages)
    ends = {n: float(found.ends(n).min(initial=float("inf"))) for n in range(1, len(found.value))}
    return {n: least for n, least in ends.items() if least < float("inf")}


def _suffixes(values: Any, budget: Budget, max_stages: int) -> Suffixes:
    """Of which the largest value of a stage is the value."""
    import numpy as np

    def costs(to_end: int) -> tuple[Any, Any]:
        least = least_option(values[to_end - 1] if isinstance(values, list) else values)
        return np.where(np.isfinite(least), 0.0, np.inf), least

    num_bounds, num_shapes = np.shape(values)[-4], np.shape(values)[-2]
    send = np.zeros((num_bounds, num_shapes, num_shapes))
    return suffixes(costs, send, budget, max_stages)
