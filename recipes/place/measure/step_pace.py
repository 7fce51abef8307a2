"""``StepPace``: how fast each group was while a workload was played, from its own steps."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from blocks.sched.cluster_sim.generation import Load
from recipes.place.group.step_log import Step

WINDOW_S = 0.25


class StepPace(NamedTuple):
    """Seconds of steps over what the profile says of the same loads, group by group in windows.

    What is in it: the speed of the machine then and there, what else ran on the group's cores, and
    where the profile is wrong about steps of such loads. Nothing of when requests came, waited, or
    were answered.

    window_s: length of a window; the first begins with the workload.
    factors: for each group of every window the ratio of sums over the steps begun in it. Where none
        was, the one of the window before; and before the first step, the mean of all.

    It is a ``pace`` of ``simulate_generation``:

    >>> halved = StepPace(0.5, ((1.0, 2.0),))
    >>> halved(0, 0.4), halved(0, 0.5), halved(0, 9.0)
    (1.0, 2.0, 2.0)
    """

    window_s: float
    factors: tuple[tuple[float, ...], ...]

    def __call__(self, group: int, now_s: float) -> float:
        own = self.factors[group]
        return own[min(len(own) - 1, max(0, math.floor(now_s / self.window_s)))]

    @property
    def spread(self) -> tuple[float, float]:
        """The least and the most of all windows."""
        every = [factor for own in self.factors for factor in own]
        return min(every), max(every)

    @classmethod
    def of(
        cls,
        steps: Sequence[Sequence[Step]],
        step_times: Sequence[Mapping[str, Callable[[Load], Sequence[float]]]],
        zero_s: float,
        window_s: float = WINDOW_S,
    ) -> "StepPace":
        """From steps as they were taken.

        Args:
            steps: of each group; those begun before ``zero_s`` do not count.
            step_times: for each group by model what the profile says of a load.
            zero_s: the workload's zero, on the clock of the steps.
        """
        found = []
        for own, known in zip(steps, step_times, strict=True):
            taken: dict[int, list[float]] = {}
            for step in own:
                if step.began_s >= zero_s:
                    window = taken.setdefault(
                        math.floor((step.began_s - zero_s) / window_s), [0.0, 0.0]
                    )
                    window[0] += step.seconds
                    window[1] += sum(known[step.model](step.load))
            found.append(_filled(taken))
        return cls(window_s, tuple(found))


def _filled(taken: Mapping[int, Sequence[float]]) -> tuple[float, ...]:
    """A factor for every window up to the last one with steps."""
    if not taken:
        return (1.0,)
    last = sum(one[0] for one in taken.values()) / sum(one[1] for one in taken.values())
    factors = []
    for at in range(max(taken) + 1):
        if at in taken:
            last = taken[at][0] / taken[at][1]
        factors.append(last)
    return tuple(factors)
