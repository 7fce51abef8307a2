"""``Found``: trials by the way that led to them."""

from collections.abc import Iterable

from blocks.sched.place_search.trial import Trial
from blocks.sched.profile import Configuration

FINALISTS = 6


class Found:
    """Trials by the name of the way that led to them; of equals, the first way's counts."""

    def __init__(self) -> None:
        self._trials: dict[str, list[Trial]] = {}

    def add(self, way: str, trials: Iterable[Trial]) -> None:
        self._trials.setdefault(way, []).extend(trials)

    def finalists(self) -> list[Trial]:
        """The best ``FINALISTS`` of different shapes, best first."""
        best: dict[tuple[Configuration, ...], Trial] = {}
        everything = [trial for trials in self._trials.values() for trial in trials]
        for trial in sorted(everything, key=lambda one: one.score, reverse=True):
            shape = tuple(group.configuration for group in trial.placement.groups)
            best.setdefault(shape, trial)
        return list(best.values())[:FINALISTS]

    def tops(self) -> dict[str, Trial]:
        """The best of every way."""
        return {
            way: max(trials, key=lambda one: one.score)
            for way, trials in self._trials.items()
            if trials
        }
