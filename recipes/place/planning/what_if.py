"""``WhatIf``: what a change of cluster or limits would bring, by searching and simulating again."""

import dataclasses
from typing import NamedTuple

from blocks.sched.placement import Placement
from recipes.place.planning.change import Change
from recipes.place.planning.search import QUICK, Say, find_placement
from recipes.place.planning.task import PlaceTask

ENOUGH = 0.99
UP = (1.1, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
DOWN = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)


class WhatIf(NamedTuple):
    """A change and the attainment that could be had with it; ``gain`` over that without."""

    change: str
    attainment: float
    gain: float


def what_if(
    task: PlaceTask, placement: Placement, say: Say = lambda line: None
) -> tuple[WhatIf, ...]:
    """One device more, a quarter more devices, a quarter more memory, limits half as long again.

    Each is searched for quickly; the placement itself is tried too, so that nothing is worse.
    """
    before = float(task.simulator().run(placement).attainment)
    devices, memory_bytes = task.num_devices, task.memory_bytes
    more = devices + max(2, -(-devices // 4))
    others = {
        f"one device more ({devices + 1})": dataclasses.replace(task, num_devices=devices + 1),
        f"a quarter more devices ({more})": dataclasses.replace(task, num_devices=more),
        "a quarter more memory a device": dataclasses.replace(
            task, memory_bytes=memory_bytes + memory_bytes // 4
        ),
        "limits half as long again": task.at(Change(slo=1.5)),
    }
    found = []
    for name, other in others.items():
        say(f"what if: {name}")
        floor = float(other.simulator().run(placement).attainment)
        attained = max(floor, find_placement(other, **QUICK).attainment)
        found.append(WhatIf(name, attained, attained - before))
    return tuple(found)


def carries(task: PlaceTask, placement: Placement) -> float:
    """The last of some factors on the rates, from 1 away, up to which the placement serves 99 % in
    time; 0 where it does so at none of them."""

    def enough(factor: float) -> bool:
        other = task.at(Change(rate=factor))
        if not other.workload.num_requests:
            return True
        return float(other.simulator().run(placement).attainment) >= ENOUGH

    if not enough(1.0):
        return next((factor for factor in DOWN if enough(factor)), 0.0)
    reached = 1.0
    for factor in UP:
        if not enough(factor):
            break
        reached = factor
    return reached
