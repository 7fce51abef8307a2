"""A placement of ``benches.place_real`` on engines that compute, on a clock of processor time."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benches.place_real_groups import pace_of
from benches.place_real_settings import (
    LIKE,
    LIMITS,
    POINTS,
    SETTINGS,
    VOCAB,
    Place,
    workload_of,
)
from blocks.sched.cluster_sim.generation import GenerationOutcome, simulate_generation
from blocks.sched.profile import Profile
from blocks.sched.workload import Workload
from recipes.place.measure import (
    ClockedGroup,
    Compared,
    StepPace,
    StepTimer,
    at_pace,
    measure_profile,
    pace,
    processor_time,
    replay,
    run_virtual,
)
from recipes.serve.loading import load


def play_clocked(
    place: Place,
    folders: Mapping[str, Path],
    seconds: float,
    given: Sequence[Workload] = (),
    known: dict[str, Profile] | None = None,
) -> list[Compared]:
    """The same on a clock of processor time, a device for each group.

    Args:
        known: profiles that were timed before; new ones are added.
    """
    placement = place.placement
    profiles = {} if known is None else known
    for model in place.models:
        like = LIKE.get(model, model)
        if like not in profiles:
            profiles[like] = measure_profile(
                folders[like], points=POINTS, limits=LIMITS, clock=time.process_time
            )
        profiles[model] = profiles[like].renamed(model)
    config = LIMITS.engine_config(64 << 20, SETTINGS.max_model_len)
    engines = [
        {model: load(folders[model], config).engine for model in group.models}
        for group in placement.groups
    ]
    timers = {
        model: [
            StepTimer(hosted[model], time.process_time) for hosted in engines if model in hosted
        ]
        for model in place.models
    }

    async def played(
        workload: Workload, seed: int, known: Mapping[str, Profile]
    ) -> tuple[GenerationOutcome, StepPace]:
        groups, zero_s = [ClockedGroup(hosted, processor_time) for hosted in engines], [0.0]
        outcome = await replay(
            workload,
            placement,
            groups,
            known,
            settings=SETTINGS,
            vocab_size=VOCAB,
            seed=seed,
            begun=lambda at_s: zero_s.insert(0, at_s),
        )
        return outcome, pace_of(place, [group.steps for group in groups], known, zero_s[0])

    found = []
    for at, traffic in enumerate(place.loads):
        workload = given[at] if given else workload_of(place, traffic, profiles, at, seconds)

        before = asyncio.run(pace(timers, profiles, (1, 1)))
        known = at_pace(profiles, before)
        real, own = run_virtual(played(workload, at, known))
        after = asyncio.run(pace(timers, profiles, (1, 1)))
        simulated = simulate_generation(placement, known, workload, settings=SETTINGS, pace=own)
        mean = at_pace(profiles, (before + after) / 2)
        by_profile = simulate_generation(placement, mean, workload, settings=SETTINGS)
        found.append(Compared(f"{place.name}, {traffic}", real, simulated, None, by_profile))
        spread = f"{own.spread[0]:.2f}-{own.spread[1]:.2f}"
        print(
            f"{found[-1].line()}, pace {before:.3f} {after:.3f}, of its steps {spread}", flush=True
        )
    return found
