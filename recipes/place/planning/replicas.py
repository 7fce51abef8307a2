"""Models on single devices: replicated once for all, or swapped as traffic goes."""

import dataclasses

from blocks.sched.cluster_sim.generation import simulate_generation
from blocks.sched.place_search import (
    Evaluator,
    Memory,
    Timeline,
    greedy_selection,
    selective_replication,
    swapping,
)
from blocks.sched.place_search.baselines import windows
from blocks.sched.place_search.useful import useful_configurations
from blocks.sched.placement import Placement
from blocks.sched.profile import Configuration
from recipes.place.planning.task import PlaceTask

SINGLE = Configuration(1, 1)


def replicated(task: PlaceTask) -> Placement:
    """Selective replication: models on single devices, as many of each as its traffic wants."""
    arguments = task.workload, task.profiles, task.num_devices, task.memory_bytes
    if not task.generates:
        return selective_replication(*arguments, task.settings)
    memory = Memory(task.profiles, task.memory_bytes, task.kv_tokens)
    evaluate = Evaluator(task.simulator(), task.workload, memory)
    empty = [(SINGLE, ())] * task.num_devices
    useful = useful_configurations(task.workload, task.profiles)
    found = greedy_selection(evaluate, memory, empty, task.workload.models, useful=useful)
    return task.roomed(memory.with_rooms(found.placement))


def every_s(task: PlaceTask) -> float:
    """How often models are swapped."""
    return task.config.serving.replan_every_s or 60.0


def swapped(task: PlaceTask) -> float:
    """What selective replication attains, solved anew for every window with its traffic known;
    loading takes the time it takes."""
    if task.generates:
        return _swapped_engines(task)
    timeline = swapping(
        task.workload,
        task.profiles,
        task.num_devices,
        task.memory_bytes,
        every_s=every_s(task),
        bytes_per_s=task.config.serving.load_bytes_per_s,
        settings=task.settings,
    )
    return timeline.serve(task.profiles, task.workload, **task.settings).attainment


def _swapped_engines(task: PlaceTask) -> float:
    """Likewise where models generate; a model's cache has the least room it has in any window."""
    found = [
        replicated(dataclasses.replace(task, workload=window))
        for window in windows(task.workload, every_s(task))
    ]
    rooms: dict[str, int] = {}
    for group in (group for placement in found for group in placement.groups):
        for model, room in zip(group.models, group.kv_tokens, strict=True):
            rooms[model] = min(room, rooms.get(model, room))
    bytes_per_s = task.config.serving.load_bytes_per_s
    timeline = Timeline.of(found, every_s(task), task.profiles, bytes_per_s)
    whole, events = timeline.as_events()
    groups = (g._replace(kv_tokens=tuple(rooms[m] for m in g.models)) for g in whole.groups)
    placement = Placement(tuple(groups))
    return simulate_generation(
        placement, task.profiles, task.workload, events=events, **task.settings
    ).attainment
