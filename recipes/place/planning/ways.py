"""``Way``: how well the same traffic is served in other ways."""

from typing import NamedTuple

from blocks.sched.place_search import Memory, round_robin
from blocks.sched.placement import Placement
from blocks.sched.profile import Configuration
from recipes.place.planning.change import Change
from recipes.place.planning.replicas import SINGLE, every_s, replicated, swapped
from recipes.place.planning.task import PlaceTask

OURS, REPLICATION = "this placement", "selective replication"
ROUND_ROBIN, SWAPPING = "round robin", "swapping"


class Way(NamedTuple):
    """A way to serve a task.

    searched: attainment on the draw of the traffic that placements were searched for on.
    fresh: on another draw.
    note: what is special about it.
    """

    name: str
    searched: float
    fresh: float
    note: str = ""


def ways(task: PlaceTask, placement: Placement) -> tuple[Way, ...]:
    """The placement first, then those it is compared with."""
    draws = (task, task.at(Change(draw=1)))
    simulators = [draw.simulator() for draw in draws]

    def way(name: str, tried: Placement, note: str) -> Way:
        searched, fresh = (one.run(tried) for one in simulators)
        return Way(name, float(searched.attainment), float(fresh.attainment), note)

    found = [
        way(OURS, placement, ""),
        way(REPLICATION, replicated(task), "groups of one device"),
        way(ROUND_ROBIN, dealt(task), f"groups of {_even(task)}, models in turn"),
    ]
    note = (
        f"replicas anew every {every_s(task):g} s, knowing what comes, "
        f"loaded at {task.config.serving.load_bytes_per_s / 1e9:g} GB/s"
    )
    found.append(Way(SWAPPING, swapped(draws[0]), swapped(draws[1]), note))
    return tuple(found)


def dealt(task: PlaceTask) -> Placement:
    """Models dealt in turn over groups of four stages, or what comes nearest."""
    arguments = task.workload, task.profiles, task.num_devices, task.memory_bytes
    found = round_robin(*arguments, _even(task))
    memory = Memory(task.profiles, task.memory_bytes, task.kv_tokens)
    return task.roomed(memory.with_rooms(found))


def _even(task: PlaceTask) -> Configuration:
    """The largest configuration of at most four devices, stages first, that all models know."""
    known = [set(profile.configurations) for profile in task.profiles.values()]
    common = set.intersection(*known)
    small = [c for c in common if c.num_devices <= min(4, task.num_devices)]
    return max(small, key=lambda c: (c.num_devices, c.pp), default=SINGLE)
