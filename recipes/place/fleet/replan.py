"""Whether a cluster of models that generate should change its placement. Needs no torch."""

import dataclasses
from collections.abc import Mapping

from blocks._checks import check
from blocks.sched.cluster_sim.generation import Admission, EngineSettings, simulate_generation
from blocks.sched.place_search import (
    Evaluator,
    GenerationSimulator,
    Memory,
    Replan,
    Switch,
    Timeline,
    improve,
    place,
    switch,
)
from blocks.sched.place_search.trial import contents
from blocks.sched.placement import Placement
from blocks.sched.profile import Profile
from blocks.sched.workload import Workload
from recipes.place.planning.deal import deal
from recipes.place.planning.rooms import capped


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplanTask:
    """Plain data, so that another process may work on it.

    current: the placement. forecast: traffic for as long as the answer shall hold.
    devices: that can be used, by number. devices_per_node: of the cluster.
    memory_bytes: of a device. kv_tokens: what each model's cache takes at least.
    bytes_per_s: speed at which models are loaded.
    least_gain: share of requests that a change must serve more, for a forecast is never sure.
    simulations: of the search for small changes, and of the search anew.
    """

    current: Placement
    forecast: Workload
    profiles: Mapping[str, Profile]
    devices: tuple[int, ...]
    devices_per_node: int
    memory_bytes: int
    kv_tokens: Mapping[str, int]
    settings: EngineSettings
    admission: Admission
    bytes_per_s: float
    least_gain: float
    simulations: int = 30


def replan_generating(task: ReplanTask) -> Replan:
    """As ``blocks.sched.place_search.replan``, for models that generate: staying is compared with
    small changes and with placing anew, the seconds counted for which groups are away."""
    check(0 <= task.least_gain < 1, "least_gain", "a share of requests from 0", task.least_gain)
    stay = _attainment(task, task.current, None)
    best: tuple[float, float, Switch | None] = (stay + task.least_gain, 0.0, None)
    for candidate in _candidates(task):
        dealt = deal(capped(candidate, task.settings), task.devices, task.devices_per_node)
        change = switch(task.current, dealt, task.profiles, task.bytes_per_s)
        attainment = _attainment(task, task.current, change)
        if (attainment, -change.away_device_s) > best[:2]:
            best = (attainment, -change.away_device_s, change)
    return Replan(best[2], stay, stay if best[2] is None else best[0])


def _candidates(task: ReplanTask) -> list[Placement]:
    forecast, profiles = task.forecast, task.profiles
    simulator = GenerationSimulator(
        profiles, forecast, settings=task.settings, admission=task.admission
    )
    memory = Memory(profiles, task.memory_bytes, task.kv_tokens)
    anew = place(
        forecast,
        profiles,
        len(task.devices),
        task.memory_bytes,
        simulator=simulator,
        kv_tokens=task.kv_tokens,
        beam_simulations=task.simulations,
        local_simulations=task.simulations,
        max_shapes=0,
        max_splits=20,
    )
    found = [anew.placement]
    if any(group.models for group in task.current.groups):
        evaluate = Evaluator(simulator, forecast, memory)
        shapes = sorted({g.configuration for g in (*task.current.groups, *anew.placement.groups)})
        near = improve(
            evaluate,
            memory,
            evaluate(contents(task.current)),
            forecast.models,
            shapes,
            len(task.devices),
            simulations=task.simulations,
        )
        found.append(memory.with_rooms(near.placement))
    return found


def _attainment(task: ReplanTask, current: Placement, change: Switch | None) -> float:
    """Of the forecast, with the change at its start."""
    changes = () if change is None else ((0.0, change),)
    whole, events = Timeline(current, changes).as_events()
    after = current if change is None else change.placement
    rooms = {
        (group.devices, model): group.kv_tokens_of(model)
        for placement in (current, after)
        for group in placement.groups
        for model in group.models
    }
    groups = tuple(
        group._replace(kv_tokens=tuple(rooms[group.devices, model] for model in group.models))
        for group in whole.groups
    )
    if not any(group.models for group in groups):
        return 0.0
    outcome = simulate_generation(
        Placement(groups),
        task.profiles,
        task.forecast,
        settings=task.settings,
        admission=task.admission,
        events=events,
    )
    return outcome.attainment
