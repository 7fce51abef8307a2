"""How fast steps are just now, against a profile timed a while ago."""

import statistics
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from blocks.sched.profile import Profile
from recipes.place.measure.group_profile import GroupTimer
from recipes.place.measure.step_timer import StepTimer

PROMPTS = (64, 160)
DECODES = ((2, 64),)


async def pace(
    timers: Mapping[str, Sequence[GroupTimer | StepTimer]],
    profiles: Mapping[str, Profile],
    configuration: tuple[int, int],
    *,
    rounds: int = 2,
) -> float:
    """Seconds of a few steps over the profile's: above 1 where the machine is slower now.

    The ratio is a median over models, where they run, steps and rounds.

    Args:
        timers: for each model its idle groups or engines.
    """
    ratios: list[float] = []
    for _ in range(rounds):
        for model, where in timers.items():
            timing = profiles[model].timing(configuration)
            for timer in where:
                for tokens in PROMPTS:
                    seconds = await _now(timer.prefill_s(tokens))
                    ratios.append(seconds / sum(timing.prefill_s(tokens)))
                for batch, context in DECODES:
                    several = await _now(timer.decode_s(batch, context, 4))
                    expected = sum(timing.decode_s(batch, context))
                    ratios.append(statistics.median(several) / expected)
    return statistics.median(ratios)


async def _now(taken: Any) -> Any:
    """What an engine says at once, and a group after a while."""
    return await taken if isinstance(taken, Awaitable) else taken


def at_pace(profiles: Mapping[str, Profile], factor: float) -> dict[str, Profile]:
    """The profiles with all times multiplied."""
    why = "steps timed again"
    return {name: one.scaled(name, time=factor, why=why) for name, one in profiles.items()}
