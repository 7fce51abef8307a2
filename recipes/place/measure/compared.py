"""``Compared``: one setting, played and simulated, side by side."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from blocks.sched.cluster_sim.generation import GenerationOutcome
from recipes.place.measure.contention import Contention

MOST_OTHERS = 0.05
"""Share of the cores that others may have while a setting counts."""


class Compared(NamedTuple):
    """What became of one workload, really and simulated.

    name: of the setting.
    simulated: with the pace of the groups' own steps, where that was measured.
    contention: of the machine while it was played; None on another clock.
    by_profile: simulated without that pace; None where there was none.
    """

    name: str
    real: GenerationOutcome
    simulated: GenerationOutcome
    contention: Contention | None = None
    by_profile: GenerationOutcome | None = None

    @property
    def is_undisturbed(self) -> bool:
        """Whether others had so little of the machine that wall time means something."""
        return self.contention is None or self.contention.others <= MOST_OTHERS

    @property
    def profile_points(self) -> float:
        """As ``points``, by the profile alone."""
        simulated = self.simulated if self.by_profile is None else self.by_profile
        return 100 * (simulated.attainment - self.real.attainment)

    @property
    def points(self) -> float:
        """Percentage points by which the simulated attainment is above the real one."""
        return 100 * (self.simulated.attainment - self.real.attainment)

    def line(self) -> str:
        """For people: attainment, refusals and median times, real and simulated."""
        real, simulated = self.real, self.simulated
        shared = real.finished & simulated.finished
        both = ""
        if shared.any():
            pairs = [(one.ttft_s[shared], one.tpot_s[shared]) for one in (real, simulated)]
            told = [f"{np.median(t) * 1e3:.0f}/{np.median(p) * 1e3:.1f}" for t, p in pairs]
            both = f"  TTFT/TPOT ms {told[0]} : {told[1]}"
        refused = f"{real.counts['rejected']}:{simulated.counts['rejected']}"
        text = (
            f"{self.name:<44} {real.attainment:7.1%} {simulated.attainment:7.1%} "
            f"{self.points:+5.1f}  {real.workload.num_requests} requests, refused {refused}{both}"
        )
        if self.by_profile is not None:
            text += f"  by profile alone {self.by_profile.attainment:.1%}"
        if self.contention is not None:
            text += f"  others {self.contention.others:.1%}"
        return text


class Gap(NamedTuple):
    """How far simulated attainments are from real ones, in percentage points."""

    mean: float
    worst: float
    bias: float

    @classmethod
    def of(cls, found: Sequence[Compared]) -> "Gap":
        """Over settings.

        Raises:
            ValueError: none.
        """
        return cls.between([one.points for one in found])

    @classmethod
    def between(cls, found: Sequence[float]) -> "Gap":
        """Over differences.

        Raises:
            ValueError: none.
        """
        points = np.array(found)
        if not len(points):
            raise ValueError("found: expected at least one setting, got none")
        return cls(float(np.abs(points).mean()), float(np.abs(points).max()), float(points.mean()))


HEAD = f"{'setting':<44} {'real':>7} {'sim.':>7} {'diff':>5}"
