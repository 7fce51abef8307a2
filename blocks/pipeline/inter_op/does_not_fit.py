"""``DoesNotFit``: no plan keeps to the limits, and by how much. Needs numpy, no torch."""

from collections.abc import Sequence

from blocks.pipeline.inter_op.budget import Budget
from blocks.pipeline.inter_op.priced import Priced
from blocks.pipeline.inter_op.suffixes import suffixes


class DoesNotFit(ValueError):
    """No plan keeps to the limits; the message says which one and by how much.

    limit: ``memory`` or ``devices``.
    shortfall_bytes: by how much the caps must rise at the least; 0 where it is not memory.
    """

    def __init__(self, message: str, limit: str, shortfall_bytes: float = 0.0) -> None:
        super().__init__(message)
        self.limit, self.shortfall_bytes = limit, shortfall_bytes


def why_not(tried: Sequence[tuple[Priced, int]], budget: Budget) -> DoesNotFit:
    """The error for what was tried, each with the most stages a plan may have.

    The least excess over the caps is the program over stages again, with the largest excess of a
    stage as the value.
    """
    least, what = float("inf"), ""
    for priced, max_stages in tried:
        excess, said = _least_excess(priced, budget, max_stages)
        if excess < least:
            least, what = excess, said
    if least == float("inf"):
        hint = "give the table other shapes or options, or allow idle devices"
        message = f"stages: expected some that use the devices as asked, got none; {hint}"
        return DoesNotFit(message, "devices")
    message = (
        f"memory_cap_bytes: expected at least {least:.6g} more, got too little even for {what}; "
        "use more devices, more microbatches, recomputation or options that shard further"
    )
    return DoesNotFit(message, "memory", least)


def _least_excess(priced: Priced, budget: Budget, max_stages: int) -> tuple[float, str]:
    """Bytes over the caps of the plan that is least over them, and that plan in words."""
    import numpy as np

    table, none = priced.table, np.zeros_like(priced.table.send_s)
    exists = np.isfinite(priced.whole_s)
    depths = range(1, max_stages + 1) if priced.flow.follows_depth else [None]
    best, said = float("inf"), ""
    for depth in depths:

        def costs(to_end: int, depth: int | None = depth) -> tuple[np.ndarray, np.ndarray]:
            needed = priced.bytes_of(priced.in_flight(to_end, depth)) - priced.caps
            needed = np.where(exists, needed, np.inf).min(axis=-1)
            return np.where(np.isfinite(needed), -np.inf, np.inf), needed

        found = suffixes(costs, none, budget, depth or max_stages)
        for stages in range(1, len(found.value)):
            least = float(found.ends(stages).min(initial=np.inf))
            if depth in (None, stages) and least < best:
                best = least
                said = (
                    f"{stages} stages of the {table.num_layers} layers, schedule "
                    f"{priced.schedule}, {priced.count} microbatches"
                )
    return best, said
