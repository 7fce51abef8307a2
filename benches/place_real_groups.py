"""A placement of ``benches.place_real`` on real groups, each setting played and simulated."""

import asyncio
import contextlib
import dataclasses
import os
import selectors
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benches.place_real_settings import (
    LIKE,
    LIMITS,
    POINTS,
    SETTINGS,
    VOCAB,
    Place,
    workload_of,
)
from blocks.sched.cluster_sim import Overheads
from blocks.sched.cluster_sim.generation import (
    SharedCores,
    StepTime,
    simulate_generation,
)
from blocks.sched.profile import Profile
from blocks.sched.workload import Workload
from recipes.place.group import GroupHandle, Step, fork_group, read_steps
from recipes.place.measure import (
    Compared,
    ContentionMeter,
    GroupTimer,
    Probe,
    StepPace,
    at_pace,
    local_groups,
    measure_group_profile,
    measure_speed,
    pace,
    replay,
)
from recipes.serve.own_folder import OwnFolder

T = TypeVar("T")
TRIES = 3
"""How often a setting is played, at most, until others leave the machine alone meanwhile."""
BESIDE_S = 4.0
"""About what a setting takes beside its traffic."""


class Spare:
    """Seconds for what is played again."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._left_s = seconds

    def take(self, seconds: float) -> bool:
        """Whether there are so many left, which are gone then."""
        if seconds > self._left_s:
            return False
        self._left_s -= seconds
        return True


def make_urgent() -> None:
    """This process, front door and clients in one, comes before the groups that share its cores;
    as it would have cores of its own elsewhere. Groups are started before."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)


def on_exact_timers(coroutine: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``, on a loop whose timers are not rounded to milliseconds."""

    def loop() -> asyncio.SelectorEventLoop:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())

    before = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        with asyncio.Runner(loop_factory=loop) as runner:
            return runner.run(coroutine)
    finally:
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


async def profiles_of(
    place: Place, folders: Mapping[str, Path], handles: Sequence[GroupHandle]
) -> tuple[dict[str, Profile], Overheads]:
    """One timing for each size, on the groups that host it; names get their size's."""
    found: dict[str, Profile] = {}
    ways: list[float] = []
    for model in place.models:
        if model in LIKE:
            found[model] = found[LIKE[model]].renamed(model)
            continue
        ports = [
            handle for handle, models in zip(handles, place.hosted, strict=True) if model in models
        ]
        found[model], way_s = await measure_group_profile(
            folders[model], model, (place.op, place.pp), ports, LIMITS, points=POINTS
        )
        ways.append(way_s)
    return found, Overheads(request_s=sum(ways) / len(ways))


def pace_of(
    place: Place, steps: Sequence[Sequence[Step]], profiles: Mapping[str, Profile], zero_s: float
) -> StepPace:
    """Of the groups while a setting was played."""
    known = [
        {model: StepTime(profiles[model].timing(group.configuration)) for model in group.models}
        for group in place.placement.groups
    ]
    return StepPace.of(steps, known, zero_s)


@dataclasses.dataclass(frozen=True)
class Timed:
    """A placement's groups, and what was timed on them before its settings.

    profiles: of its models. overheads: what a request costs beside steps. shared: how its groups
    share cores; None where one group has all of them. timers: of each model, one a group.
    logs: where each group writes its steps.
    """

    place: Place
    handles: Sequence[GroupHandle]
    logs: Sequence[Path]
    profiles: Mapping[str, Profile]
    overheads: Overheads
    shared: SharedCores | None
    timers: Mapping[str, Sequence[GroupTimer]]

    @classmethod
    async def of(
        cls,
        place: Place,
        folders: Mapping[str, Path],
        handles: Sequence[GroupHandle],
        logs: Sequence[Path],
    ) -> "Timed":
        """Time what has to be known."""
        profiles, overheads = await profiles_of(place, folders, handles)
        hosted = list(zip(handles, place.hosted, strict=True))
        timers = {
            model: [
                GroupTimer(handle, model, VOCAB, f"paced-{model}-{at}")
                for at, (handle, models) in enumerate(hosted)
                if model in models
            ]
            for model in place.models
        }
        probes = [Probe(handle, models[0]) for handle, models in hosted]
        speed, shared = (1.0,), None
        if len(probes) > 1:  # else a step has all cores, and its times say so
            apart = [probes[place.core_of.index(core)] for core in sorted(set(place.core_of))]
            speed = await measure_speed(apart)
            shared = SharedCores(place.core_of, speed)
        told = ", ".join(f"{one:.2f}" for one in speed)
        print(
            f"# {place.name}: request {overheads.request_s * 1e3:.2f} ms, speed {told}", flush=True
        )
        return cls(place, handles, logs, profiles, overheads, shared, timers)

    async def compared(self, name: str, workload: Workload, seed: int) -> tuple[Compared, str]:
        """A setting, played once and simulated twice; and what the machine's pace was."""
        placement, layout = self.place.placement, (self.place.op, self.place.pp)
        before = await pace(self.timers, self.profiles, layout)
        known, zero_s = at_pace(self.profiles, before), [0.0]
        meter = ContentionMeter()
        real = await replay(
            workload,
            placement,
            self.handles,
            known,
            settings=SETTINGS,
            request_s=self.overheads.request_s,
            vocab_size=VOCAB,
            seed=seed,
            begun=lambda at_s: zero_s.insert(0, at_s),
        )
        contention = meter.read()
        await asyncio.sleep(0.05)  # the last steps are written down
        own = pace_of(self.place, [read_steps(log) for log in self.logs], known, zero_s[0])
        after = await pace(self.timers, self.profiles, layout)
        same = {"settings": SETTINGS, "overheads": self.overheads}
        # the groups' own steps hold what shared cores cost: it is not counted again
        simulated = simulate_generation(placement, known, workload, pace=own, **same)
        mean = at_pace(self.profiles, (before + after) / 2)
        by_profile = simulate_generation(placement, mean, workload, cores=self.shared, **same)
        spread = f"{own.spread[0]:.2f}-{own.spread[1]:.2f}"
        told = f"pace {before:.3f} {after:.3f}, of its steps {spread}"
        return Compared(name, real, simulated, contention, by_profile), told


async def play(
    place: Place,
    folders: Mapping[str, Path],
    seconds: float,
    given: Sequence[Workload] = (),
    spare: Spare | None = None,
) -> list[Compared]:
    """Every setting of a placement on real groups, and simulated.

    Args:
        given: workloads of the settings, instead of those by this placement's own profile.
        spare: seconds for settings that were disturbed; None plays nothing again.
    """
    cores = sorted(os.sched_getaffinity(0))
    core_of = [cores[core % len(cores)] for core in place.core_of]
    spare, found = spare or Spare(), []
    with OwnFolder("steps") as root:
        logs = [Path(root) / f"{at}" for at in range(len(place.hosted))]
        async with local_groups(
            place.placement, folders, LIMITS, core_of=core_of, start=fork_group, step_logs=logs
        ) as handles:
            make_urgent()
            timed = await Timed.of(place, folders, handles, logs)
            for at, traffic in enumerate(place.loads):
                if given:
                    workload = given[at]
                else:
                    workload = workload_of(place, traffic, timed.profiles, at, seconds)
                name = f"{place.name}, {traffic}"
                one, told = await timed.compared(name, workload, at)
                for turn in range(1, TRIES):
                    if one.is_undisturbed or not spare.take(place.stretch * seconds + BESIDE_S):
                        break
                    print(f"  disturbed, once more: {one.line()}", flush=True)
                    one, told = await timed.compared(name, workload, at + 100 * turn)
                found.append(one)
                end = "" if one.is_undisturbed else ", does not count"
                print(f"{one.line()}, {told}{end}", flush=True)
    return found
