"""``CutSearch``: partitions cut on a grid, then finer near plans found. Needs numpy, no torch."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

from blocks.pipeline.inter_op.budget import budget
from blocks.pipeline.inter_op.caps import Caps, caps_of
from blocks.pipeline.inter_op.closed_formula import Plan
from blocks.pipeline.inter_op.does_not_fit import why_not
from blocks.pipeline.inter_op.every_cut import every_cut
from blocks.pipeline.inter_op.fitting_cuts import fitting_cuts
from blocks.pipeline.inter_op.flow import FLOWS
from blocks.pipeline.inter_op.grid import FINER, bounds_of, near, thin
from blocks.pipeline.inter_op.layer_sums import LayerSums
from blocks.pipeline.inter_op.plan_search import PlanSearch, Progress
from blocks.pipeline.inter_op.priced import Priced
from blocks.pipeline.inter_op.problem import Problem
from blocks.pipeline.inter_op.stage_table import StageSource, StageTable


@dataclasses.dataclass(frozen=True, eq=False)
class CutSearch:
    """The same cluster and limits for every schedule, number of microbatches and set of cuts.

    sources: what stages cost, by number of microbatches.
    names: schedules. The others are as ``partition_mesh`` takes them.
    """

    sources: Mapping[int, StageSource]
    names: Sequence[str]
    num_hosts: int
    devices_per_host: int
    memory_cap_bytes: Caps
    kinds: Sequence[str]
    idle_devices: bool
    max_stages: int | None
    epsilon: int | float
    max_cells: int
    progress: Progress | None

    @functools.cached_property
    def cuts(self) -> dict[int, tuple[int, ...]]:
        """All there may be, by number of microbatches."""
        return {count: bounds_of(source) for count, source in self.sources.items()}

    @functools.cached_property
    def num_cells(self) -> int:
        """Most stretches between cuts."""
        return max(map(len, self.cuts.values())) - 1

    @functools.cached_property
    def cell(self) -> int:
        """Every which cut is on the grid."""
        return -(-self.num_cells // self.max_cells)

    def problem(self, name: str, count: int, stages: StageTable) -> Problem:
        """One schedule with one number of microbatches on given cuts."""
        shape = (self.num_hosts, self.devices_per_host, self.kinds)
        devices = budget(stages.shapes, *shape, whole=not self.idle_devices)
        caps = caps_of(self.memory_cap_bytes, stages.shapes)
        most = min(self.max_stages or len(stages.bounds), len(stages.bounds) - 1)
        return Problem(Priced(stages, name, count, caps), devices, most, caps)

    @functools.cached_property
    def problems(self) -> list[Problem]:
        """All schedules and numbers of microbatches, on the grid."""
        stages = {n: self.sources[n].at(thin(cuts, self.cell)) for n, cuts in self.cuts.items()}
        return [self.problem(name, n, stages[n]) for n in self.sources for name in self.names]

    def on_grid(self, effort: int) -> PlanSearch:
        """The best of all problems; where none fits on the grid, what fits between its cuts, with
        the bound of plans on the grid that have all the memory they ask for.

        Raises:
            DoesNotFit: no plan keeps to the limits.
        """
        search = PlanSearch(self.problems, self.epsilon, effort, self.progress)
        search.start()
        search.run()
        if search.best is not None:
            return search
        found = min(self._between(), key=lambda one: one.best_s, default=None)
        if found is None:
            tried = [(problem.priced, problem.max_stages) for problem in self.problems]
            raise why_not(tried, self.problems[0].devices)
        bounds = (problem.without_caps().bounds(found.best_s) for problem in self.problems)
        found.bound_s = min([found.best_s, *(s for one in bounds for s in one.totals.values())])
        return found

    def _between(self) -> Iterator[PlanSearch]:
        """Searches that begin with what ``fitting_cuts`` finds."""
        for problem in self.problems if self.cell > 1 else ():
            name, count = problem.priced.schedule, problem.priced.count
            sums = self.sources[count]
            if not isinstance(sums, LayerSums) or FLOWS[name].follows_depth:
                continue
            limits = (problem.caps, problem.devices, self.max_stages or self.num_cells)
            if (found := fitting_cuts(sums, name, count, *limits)) is not None:
                yield self._from(name, count, *found)

    def _from(self, name: str, count: int, cuts: tuple[int, ...], plan: Plan) -> PlanSearch:
        """A search that begins with a plan between these cuts."""
        few = self.problem(name, count, self.sources[count].at(cuts))
        search = PlanSearch([few], self.epsilon, 0, self.progress)
        search.meet(few, plan)
        return search

    def finer(self, search: PlanSearch, step: int) -> PlanSearch:
        """From cuts ``step`` apart to any, near those found, and only there."""
        while step > 1:
            step = -(-step // FINER)
            assert search.best is not None, "it began with a plan"
            found, plan = search.best
            name, count = found.priced.schedule, found.priced.count
            cuts = near(found.cuts(plan), self.cuts[count], step, self.max_cells)
            problem = self.problem(name, count, self.sources[count].at(cuts))
            search = PlanSearch([problem], self.epsilon, 0, self.progress)
            search.seed(problem, found, plan)
            search.run()
        return search

    @property
    def is_boundable(self) -> bool:
        """Whether ``over_every_cut`` knows a bound."""
        sums = all(isinstance(source, LayerSums) for source in self.sources.values())
        return sums and not any(FLOWS[name].follows_depth for name in self.names)

    def over_every_cut(self, search: PlanSearch) -> tuple[float, PlanSearch]:
        """A bound on plans cut anywhere, and the best search: the one given, or one that begins at
        the cuts of the bound.

        Args:
            search: with the best plan so far.
        """
        bound_s = search.best_s * (1 - self.epsilon / 2)
        for problem in self.problems:
            name, count = problem.priced.schedule, problem.priced.count
            sums = self.sources[count]
            assert isinstance(sums, LayerSums), "asked for where it is boundable"
            limits = (problem.caps, problem.devices, self.max_stages or self.num_cells)
            wanted = {"wanted": bound_s, "tolerance": self.epsilon / 2}
            found = every_cut(sums, name, count, *limits, **wanted)
            bound_s = min(bound_s, found.bound_s)
            if found.plan is not None:
                other = self.finer(self._from(name, count, *found.plan), FINER)
                search = min(search, other, key=lambda one: one.best_s)
        return bound_s, search
