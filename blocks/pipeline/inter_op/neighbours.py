"""``neighbours``: plans that differ from one in one place. Needs numpy, no torch."""

from collections.abc import Iterator

from blocks.pipeline.inter_op.closed_formula import Plan
from blocks.pipeline.inter_op.priced import Priced


def neighbours(priced: Priced, plan: Plan) -> Iterator[Plan]:
    """A bound moved by one, the shapes of two stages exchanged, two stages exchanged, another
    option.

    They use as many devices as ``plan``. Not all need fit or exist.
    """
    num_options = priced.exists.shape[-1]
    for n, (k, i, m, o) in enumerate(plan):
        for other in range(num_options):
            if other != o:
                yield _with(plan, n, (k, i, m, other))
        if n + 1 == len(plan):
            break
        _, stop, shape, option = plan[n + 1]
        for moved in (i - 1, i + 1):
            if k < moved < stop:
                yield _with(plan, n, (k, moved, m, o), (moved, stop, shape, option))
        for far in range(n + 1, len(plan)):
            first, last, shape, option = plan[far]
            if shape != m:
                swapped = _with(plan, n, (k, i, shape, o))
                yield _with(swapped, far, (first, last, m, option))
            if (last - first, option) != (i - k, o):
                yield _exchanged(plan, n, far)


def _exchanged(plan: Plan, n: int, far: int) -> Plan:
    """Two stages in one another's place, with as many cells, their shapes and options."""
    order = [*plan]
    order[n], order[far] = plan[far], plan[n]
    found, k = [], 0
    for first, stop, m, o in order:
        found.append((k, k + stop - first, m, o))
        k += stop - first
    return tuple(found)


def _with(plan: Plan, n: int, *stages: tuple[int, int, int, int]) -> Plan:
    return (*plan[:n], *stages, *plan[n + len(stages) :])
