"""``Suffixes``: the program over layers, stages and devices. Needs numpy, no torch.

One recursion serves every question asked about stages: with ``s`` stages from layer ``k`` to the
end on ``u`` devices, the first of them on shape ``m``,

    value[s, m, k, u] = min over stop i of max(head[k, i, m], step[k, i, m] + after[s-1, m, i, u'])
    after[s, m, i, u] = min over shape m' of send[i, m, m'] + value[s, m', i, u]

``step`` alone adds up (the least sum of stage times), ``head`` with a zero ``step`` finds the least
largest, both together the longest chain. It is the capped sum of ``blocks.pipeline.capped_sum``
with a budget of devices and a price between neighbours.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from blocks.pipeline.inter_op.budget import Budget

Costs = Callable[[int], tuple[Any, Any]]
"""``step`` and ``head`` (or None) for stages with so many stages to the end, ``[k, i, m]``."""

SMALL = 300_000
"""Cells below which one operation on everything is faster than one for every stage length."""


class Suffixes(NamedTuple):
    """Values of the recursion by number of stages, from 0; ``value[0]`` is empty."""

    value: list[Any]
    after: list[Any]
    budget: Budget

    def ends(self, stages: int) -> Any:
        """Of all layers by shape and final state, ``[m, end]``."""
        return self.value[stages][:, 0, self.budget.ends]


def suffixes(
    costs: Costs,
    send: Any,
    budget: Budget,
    max_stages: int,
    *,
    limit: Callable[[int], Any] | None = None,
    room: Callable[[int, Any], Any] | None = None,
) -> Suffixes:
    """
    Args:
        costs: of stages by their number of stages to the end.
        send: ``[bound, shape before, shape after]``.
        max_stages: most stages of a plan.
        limit: values above it, ``[k, u]`` for a number of stages, are not followed up.
        room: by stages to the end and ``step`` the largest value that may begin with a stage,
            ``[k, i, m]``, or None.
    """
    import numpy as np

    num_bounds, num_shapes = send.shape[:2]
    shape = (num_shapes, num_bounds, budget.num_states + 1)
    last = np.full(shape, np.inf)
    last[:, -1, 0] = 0.0
    same = bool((send == send[:, :1, :1]).all())
    able = [m for m in range(num_shapes) if (budget.before[m] < budget.num_states).any()]
    value, after = [np.full(shape, np.inf)], [last]
    for stages in range(1, max_stages + 1):
        step, head = costs(stages)
        most = None if room is None else room(stages, step)
        found = np.full(shape, np.inf)
        for m in able:
            longest, kept = (None if one is None else one[:, :, m] for one in (head, most))
            _extend(found[m], step[:, :, m], longest, kept, after[-1][m], budget.before[m])
        if limit is not None:
            bound = limit(stages)
            found[:, :, :-1][found[:, :, :-1] > bound] = np.inf
        if not np.isfinite(found).any():
            break
        value.append(found)
        after.append(_send(found, send, able, same=same))
    return Suffixes(value, after, budget)


def _extend(found: Any, step: Any, head: Any, room: Any, after: Any, before: Any) -> None:
    """One shape's values with one more stage, into ``found`` ``[k, u]``."""
    import numpy as np

    later = after[:, before]  # [i, u], devices of the stage taken off
    num_bounds, num_states = later.shape
    out = found[:, :num_states]
    if num_bounds * num_bounds * num_states <= SMALL:
        every = step[:, :, None] + later[None]
        if head is not None:
            np.maximum(every, head[:, :, None], out=every)
        if room is not None:
            every[every > room[:, :, None]] = np.inf
        every.min(axis=1, out=out)
        return
    low, high = _span(np.isfinite(later))
    first, last = _span(np.isfinite(step).T)
    for i in np.flatnonzero((low < high) & (first < last)).tolist():
        at = slice(first[i], last[i]), slice(low[i], high[i])
        reached = step[at[0], i][:, None] + later[i, at[1]]
        if head is not None:
            np.maximum(reached, head[at[0], i][:, None], out=reached)
        if room is not None:
            reached[reached > room[at[0], i][:, None]] = np.inf
        np.minimum(out[at], reached, out=out[at])


def _span(some: Any) -> tuple[Any, Any]:
    """For every row from where to where it has any."""
    any_ = some.any(axis=1)
    return some.argmax(axis=1), (some.shape[1] - some[:, ::-1].argmax(axis=1)) * any_


def _send(value: Any, send: Any, able: Sequence[int], *, same: bool) -> Any:
    """``after`` of ``value``; only ``able`` shapes have any.

    Args:
        same: whether shapes make no difference to ``send``.
    """
    import numpy as np

    if same:
        least = functools.reduce(np.minimum, [value[m] for m in able])
        return np.broadcast_to(least + send[:, 0, 0][:, None], value.shape)
    found = np.full(value.shape, np.inf)
    for m in able:
        for other in able:
            reached = value[other] + send[:, m, other][:, None]
            np.minimum(found[m], reached, out=found[m])
    return found


def prefixes(step: Any, send: Any, budget: Budget) -> Any:
    """Least sums of all layers before ``k`` on what devices ``u`` leave over, ``[k, u]``.

    Stages follow one another without regard to their number or to who sends to whom: a bound.
    """
    import numpy as np

    num_bounds, num_shapes = send.shape[:2]
    least_send = send.min(axis=(1, 2))
    found = np.full((num_bounds, budget.num_states + 1), np.inf)
    found[0, 0] = 0.0
    if not budget.whole:
        found[0, :-1] = 0.0
    for stop in range(1, num_bounds):
        for m in range(num_shapes):
            costs = step[:stop, stop, m]
            able = np.isfinite(costs)
            if able.any():
                reached = found[:stop][able][:, budget.before[m]] + costs[able][:, None]
                np.minimum(found[stop, :-1], reached.min(axis=0), out=found[stop, :-1])
        found[stop] += least_send[stop]
    return found[:, -2::-1]
