"""The best groups for the models of one bucket on so many devices."""

from collections.abc import Callable, Collection, Sequence

from blocks.sched.place_search.beam import beam_selection
from blocks.sched.place_search.greedy import Grown, Useful, greedy_selection
from blocks.sched.place_search.memory import Memory
from blocks.sched.place_search.shapes import Shapes, group_shapes
from blocks.sched.place_search.trial import Evaluator, Trial
from blocks.sched.profile import Configuration

KEPT = 3


class BucketSearch:
    """Runs algorithm 1 on every shape of a bucket's devices; every question is answered once.

    beam_simulations: the beam is used where it takes about so many simulations at most, the quick
        rule elsewhere.
    width: of the beam.
    """

    def __init__(
        self,
        evaluate: Evaluator,
        memory: Memory,
        configurations: Collection[Configuration],
        useful: Useful,
        *,
        beam_simulations: int,
        width: int,
        tell: Callable[[str], None],
    ) -> None:
        self.evaluate = evaluate
        self.memory = memory
        self.configurations = sorted(configurations)
        self.useful = useful
        self.beam_simulations = beam_simulations
        self.width = width
        self.tell = tell
        self._known: dict[tuple[tuple[str, ...], int], tuple[Trial, ...]] = {}

    def best(self, models: tuple[str, ...], num_devices: int) -> tuple[Trial, ...]:
        """The best trials of different shapes, best first, at most ``KEPT``.

        Where the same models were placed on another number of devices before, only the
        configurations that did best there are tried.
        """
        key = (models, num_devices)
        if key not in self._known:
            trials = [
                self.select(shapes, models)
                for shapes in group_shapes(num_devices, self._worth(models, num_devices))
            ]
            trials.sort(key=lambda trial: trial.score, reverse=True)
            self._known[key] = tuple(trials[:KEPT]) or (self.evaluate(()),)
            best = self._known[key][0].score.attainment
            self.tell(f"{len(models)} models on {num_devices} devices: {best:.2%} of all requests")
        return self._known[key]

    def _worth(self, models: tuple[str, ...], num_devices: int) -> list[Configuration]:
        useful = [
            configuration
            for configuration in self.configurations
            if any(self.useful(model, configuration) for model in models)
        ]
        done = [count for known, count in self._known if known == models]
        if not done:
            return useful
        near = min(done, key=lambda count: (abs(count - num_devices), count))
        trials = self._known[models, near]
        good = {group.configuration for trial in trials for group in trial.placement.groups}
        singles = [one for one in useful if one.num_devices <= 1]
        return sorted({one for one in useful if one in good} | set(singles))

    def select(self, shapes: Shapes, models: Sequence[str]) -> Trial:
        """Algorithm 1 on empty groups."""
        groups: Grown = [(configuration, ()) for configuration in shapes]
        trial = greedy_selection(self.evaluate, self.memory, groups, models, useful=self.useful)
        if self._beam_cost(shapes, models) <= self.beam_simulations:
            other = beam_selection(
                self.evaluate, self.memory, groups, models, width=self.width, useful=self.useful
            )
            trial = max(trial, other, key=lambda one: one.score)
        return trial

    def _beam_cost(self, shapes: Shapes, models: Sequence[str]) -> int:
        """Simulations, about: replicas that fit x models x groups x width."""
        replicas = 0
        for configuration in shapes:
            hosted: tuple[str, ...] = ()
            for model in models:
                if self.memory.holds(configuration, (*hosted, model)):
                    hosted = (*hosted, model)
            replicas += len(hosted)
        return replicas * len(models) * min(len(shapes), 4) * self.width // 2
