"""``makespans``: the simulator on many plans at once. Needs numpy, no torch."""

import functools
from collections.abc import Sequence
from typing import Any

from blocks.pipeline.action import Kind
from blocks.pipeline.dependencies import dependencies
from blocks.pipeline.inter_op.priced import Priced, Stage
from blocks.pipeline.schedule import Schedule
from blocks.pipeline.schedules import SCHEDULES

_CODES = {Kind.FORWARD: 0, Kind.BACKWARD: 1, Kind.WEIGHT: 2, Kind.FULL_BACKWARD: 3}


@functools.lru_cache(maxsize=16)
def program(schedule: str, num_stages: int, num_microbatches: int) -> Schedule:
    """The schedule of whole microbatches, one stage a rank."""
    return SCHEDULES[schedule](num_stages, (1,) * num_microbatches)


@functools.lru_cache(maxsize=64)
def _steps(schedule: str, num_stages: int, num_microbatches: int) -> list[tuple[Any, ...]]:
    """Number, rank, kind and the number and rank of the action of another rank it waits for."""
    graph = dependencies(program(schedule, num_stages, num_microbatches))
    steps = []
    for number in graph.order:
        before = graph.remote[number]  # one at most: stages are a chain of whole microbatches
        source = before[0] if before else -1
        rank = graph.ranks[source] if before else -1
        steps.append(
            (number, graph.ranks[number], _CODES[graph.actions[number].kind], source, rank)
        )
    return steps


def makespans(priced: Priced, plans: Sequence[Sequence[Stage]] | Any) -> Any:
    """Seconds of a step for plans of equally many stages, what is done once a step included.

    ``plans`` may be an array, ``[plan, stage, 4]``.

    The same additions and comparisons as ``simulate``, so the same bits.
    """
    import numpy as np

    where = np.asarray(plans).transpose(2, 1, 0)  # [index, stage, plan]
    first, _, shape, _ = where
    cells = {name: values[tuple(where)] for name, values in priced.table.cells.items()}
    whole = cells["backward_s"] + cells["weight_s"]
    seconds = [cells["forward_s"], cells["backward_s"], cells["weight_s"], whole]
    num_stages, num_plans = first.shape
    send, back = np.zeros((2, num_stages + 1, num_plans))
    hop = (first[1:], shape[:-1], shape[1:])
    send[1:-1], back[1:-1] = priced.table.send_s[hop], priced.table.return_s[hop]
    clock = np.zeros((num_stages, num_plans))
    ends: dict[int, Any] = {}
    for number, rank, kind, source, other in _steps(priced.schedule, num_stages, priced.count):
        start = clock[rank]
        if source >= 0:
            ready = ends[source] + (send[rank] if other < rank else back[rank + 1])
            start = np.maximum(start, ready)
        clock[rank] = start + seconds[kind][rank]
        ends[number] = clock[rank].copy()
    return (clock + cells["once_s"]).max(axis=0)
