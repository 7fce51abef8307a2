"""What no placement can do: models that fit nowhere, limits that no configuration meets."""

from collections.abc import Iterator

import numpy as np

from blocks.sched.placement import Group, Placement, Problem
from blocks.sched.profile import Configuration, Profile, Timing
from recipes.place.planning.task import PlaceTask


def impossible(task: PlaceTask) -> tuple[Problem, ...]:
    """A problem for each model that cannot be hosted or cannot meet its limits, even alone on the
    cluster; ``group`` is -1, and ``shortfall`` as in ``Problem``."""
    return tuple(problem for name in task.workload.models for problem in _of_model(task, name))


def _of_model(task: PlaceTask, name: str) -> Iterator[Problem]:
    profile = task.profiles[name]
    small = [c for c in profile.configurations if c.num_devices <= task.num_devices]
    if not small:
        least = min(c.num_devices for c in profile.configurations)
        text = f"{name} takes {least} devices at least, the cluster has {task.num_devices}"
        yield Problem("devices", -1, text, least - task.num_devices)
        return
    alone = {c: _alone(task, profile, name, c) for c in small}
    fitting = [c for c, problem in alone.items() if problem is None]
    if not fitting:
        short = {c: problem.shortfall for c, problem in alone.items() if problem is not None}
        best = min(small, key=lambda c: short[c])
        text = (
            f"{name} needs {task.memory_bytes + short[best]:,} bytes a device even as {best}, "
            f"{task.memory_bytes:,} there: {short[best]:,} short"
        )
        yield Problem("memory", -1, text, short[best])
        return
    yield from _limits(task, name, [profile.timing(c) for c in fitting])


def _alone(
    task: PlaceTask, profile: Profile, name: str, configuration: Configuration
) -> Problem | None:
    rooms = () if task.kv_tokens is None else (task.kv_tokens[name],)
    devices = tuple(range(configuration.num_devices))
    alone = Placement((Group(devices, configuration, (name,), rooms),))
    return next(iter(alone.problems({name: profile}, task.memory_bytes)), None)


def _limits(task: PlaceTask, name: str, timings: list[Timing]) -> Iterator[Problem]:
    """Limits that are shorter than the quickest configuration takes for the shortest request."""
    workload = task.workload
    mine = workload.model == workload.models.index(name)
    if not mine.any():
        return
    loosest_s = float(np.max(workload.slo_s[mine]))
    if not task.generates:
        yield from _limit(name, "slo_s", loosest_s, {t: t.latency_s() for t in timings})
        return
    prompt_len = int(np.min(workload.prompt_len[mine]))
    first_s = {timing: sum(timing.prefill_s(prompt_len)) for timing in timings}
    yield from _limit(name, "ttft_s", loosest_s, first_s)
    token_s = {timing: sum(timing.decode_s(1, 1)) for timing in timings}
    yield from _limit(name, "tpot_s", float(np.max(workload.tpot_s[mine])), token_s)


def _limit(name: str, what: str, limit_s: float, took_s: dict[Timing, float]) -> Iterator[Problem]:
    best = min(took_s, key=lambda timing: took_s[timing])
    least_s = took_s[best]
    if least_s > limit_s:
        text = (
            f"{name}.{what} is {limit_s:g} s, alone it takes {least_s:.4g} s as "
            f"{best.configuration}: {least_s - limit_s:.3g} s too short"
        )
        yield Problem("limit", -1, text)


def unhosted(task: PlaceTask, placement: Placement) -> tuple[str, ...]:
    """A line for each model that is asked for and that no group hosts: by how much it does not fit
    beside the others, where it fits best."""
    asked = dict(zip(task.workload.models, task.workload.requests_by_model(), strict=True))
    return tuple(
        _why_unhosted(task, placement, name)
        for name, count in asked.items()
        if count and not placement.groups_of(name)
    )


def _why_unhosted(task: PlaceTask, placement: Placement, name: str) -> str:
    rooms = task.kv_tokens or {}
    short = []
    for at, group in enumerate(placement.groups):
        if task.profiles[name].find(group.configuration) is None:
            continue
        least = group._replace(kv_tokens=tuple(rooms[m] for m in group.models) if rooms else ())
        more = Placement((least.hosting(name, rooms.get(name, 0)),))
        found = [p for p in more.problems(task.profiles, task.memory_bytes) if p.kind == "memory"]
        short.append((found[0].shortfall if found else 0, at))
    if not short:
        return f"{name} is not hosted: it was not timed in the configuration of any group"
    missing, at = min(short)
    if not missing:
        return f"{name} is not hosted, though group {at} has room: it serves more without"
    short_by = f"{missing:,} bytes a device short on group {at}"
    return f"{name} is not hosted: {short_by}, where it fits best"
