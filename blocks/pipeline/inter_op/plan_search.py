"""``PlanSearch``: the best simulated plan of several problems. Needs numpy, no torch."""

import itertools
from collections.abc import Callable, Sequence

from blocks.pipeline.inter_op.best_first import best_first
from blocks.pipeline.inter_op.closed_formula import Plan, closed_formula
from blocks.pipeline.inter_op.formula import Formula, alpa
from blocks.pipeline.inter_op.grid import thin
from blocks.pipeline.inter_op.makespans import makespans
from blocks.pipeline.inter_op.neighbours import neighbours
from blocks.pipeline.inter_op.problem import Problem

COARSER = 4
"""How many stretches between bounds are one where a coarser partition is sought first."""

MAX_DEPTHS = 2
"""Numbers of stages looked at apart where nothing is to be proven."""

PATIENCE = 6
"""Numbers of stages simulated that are no better one after the other, of large problems."""

LEAST_EFFORT = 100
"""Below it no further problem is proven."""

MAX_MOVES = 100

Progress = Callable[[str, int, int], None]
"""Told what is being looked at, how many of how many are done."""


class PlanSearch:
    """Problems from the most promising on, until none can be better than what was found."""

    def __init__(
        self,
        problems: Sequence[Problem],
        epsilon: int | float,
        effort: int,
        progress: Progress | None,
    ) -> None:
        self.problems, self.epsilon, self.effort = problems, epsilon, effort
        self.thorough = effort > 0 and not any(problem.is_large for problem in problems)
        self.progress = progress or (lambda what, done, of: None)
        self.best: tuple[Problem, Plan] | None = None
        self.best_s = self.bound_s = float("inf")
        self.rivals: dict[tuple[str, int], float] = {}

    def start(self) -> None:
        """A good plan from few bounds, where there are many: all that follows is then cut short."""
        if not any(problem.is_large for problem in self.problems):
            return
        fewer = {id(p.priced.table): p.priced.table for p in self.problems}
        for key, table in fewer.items():
            fewer[key] = table.at(thin(table.bounds, COARSER))
        coarse = [problem.on(fewer[id(problem.priced.table)]) for problem in self.problems]
        search = PlanSearch(coarse, 0.01, 0, self.progress)
        search.start()
        search.run()
        if search.best is None:
            return
        found, plan = search.best
        self.seed(next(problem for problem in self.problems if found.same(problem)), found, plan)

    def meet(self, problem: Problem, plan: Plan) -> None:
        """Begin with a plan."""
        depth = len(plan) if problem.priced.flow.follows_depth else None
        self._simulate(problem.of_depth(depth), [plan])

    def seed(self, problem: Problem, other: Problem, plan: Plan) -> None:
        """Begin with a plan of the same problem on other bounds."""
        numbers = {bound: n for n, bound in enumerate(problem.priced.table.bounds)}
        cuts = [numbers[cut] for cut in other.cuts(plan)]
        spans = itertools.pairwise(cuts)
        plan = tuple((*span, m, o) for span, (_, _, m, o) in zip(spans, plan, strict=True))
        self.meet(problem, plan)

    def run(self) -> None:
        """Bounds, then formulas, then a proof."""
        whole: list[tuple[float, int, Problem, dict[int, float]]] = []
        for done, problem in enumerate(self.problems):
            self.progress("bounds", done, len(self.problems))
            found = problem.bounds(self.best_s)
            self._simulate(problem, found.plans)
            if found.totals:
                whole.append((min(found.totals.values()), len(whole), problem, found.totals))
        left: list[tuple[float, int, Problem]] = []
        for done, (bound, _, problem, totals) in enumerate(sorted(whole, key=lambda w: w[:2])):
            self.progress("partitions", done, len(whole))
            if bound >= self.best_s:
                continue
            if problem.trips is not None:
                left.append((max(bound, self._solve(problem)), len(left), problem))
                continue
            self._minimise(problem, alpa(problem.priced))  # of the plans that fit all the same
            tries = len(totals) if self.effort else MAX_DEPTHS
            for depth in sorted(totals, key=lambda depth: totals[depth]):
                deep, bound = problem.of_depth(depth), totals[depth]
                if bound < self._enough_s and tries > 0:
                    tries -= 1
                    bound = max(bound, self._solve(deep))
                left.append((bound, len(left), deep))
        self._polish()
        left.sort(key=lambda found: found[:2])
        for done, (bound, _, problem) in enumerate(left):
            self.progress("proof", done, len(left))
            if bound < self._enough_s and self.effort > LEAST_EFFORT and not problem.is_large:
                bound = max(bound, self._prove(problem))
            self.bound_s = min(self.bound_s, bound)
        self.bound_s = min(self.bound_s, self.best_s)

    @property
    def _enough_s(self) -> float:
        """Bounds need not be above it."""
        return self.best_s * (1 - self.epsilon)

    def _solve(self, problem: Problem) -> float:
        """What the formulas find, simulated; and what no plan of the problem comes below."""
        assert problem.trips is not None, "one problem for each number of stages"
        bound = self._minimise(problem, problem.trips, below=self.best_s)
        if bound < self.best_s and (self.thorough or problem.priced.depth is None):
            self._minimise(problem, alpa(problem.priced))
        return bound

    def _minimise(
        self, problem: Problem, formula: Formula, *, below: int | float = float("inf")
    ) -> float:
        """The plans with the least formula, simulated; and its bound."""
        known: list[Plan] = []
        if self.best is not None:
            found, plan = self.best
            alike = problem.priced.depth in (None, len(plan))
            known = [plan] if alike and problem.same(found) else []
        search = closed_formula(
            formula,
            problem.devices,
            epsilon=self.epsilon,
            max_stages=problem.max_stages,
            known=known,
            below=below,
            enough=0.0 if formula is not problem.trips else self._enough_s,
        )
        self._simulate(problem, [choice.stages for choice in search.choices])
        return search.bound_s

    def _polish(self) -> None:
        """Moves to the best neighbour of the best plan while there is a better one."""
        for _ in range(MAX_MOVES):
            if self.best is None:
                return
            (problem, plan), before = self.best, self.best_s
            self._simulate(problem, list(neighbours(problem.priced, plan)))
            if self.best_s >= before:
                return

    def _prove(self, problem: Problem) -> float:
        """Looks for better plans one by one; what is left has at least this bound."""
        effort = self.effort // 2
        proof = best_first(
            problem.priced,
            problem.devices,
            problem.max_stages,
            below=self.best_s,
            effort=effort,
        )
        self.effort -= proof.num_expanded
        if proof.best is not None:
            self._simulate(problem, [proof.best[0]])
        return proof.bound_s

    def _simulate(self, problem: Problem, plans: Sequence[Plan]) -> None:
        """The makespans of plans; the best of all is kept, and that of the problem."""
        by_depth: dict[int, list[tuple[float, Plan]]] = {}
        for plan in plans:
            bound = problem.bound_of(plan)
            if bound < self.best_s:
                by_depth.setdefault(len(plan), []).append((bound, plan))
        least, worse = float("inf"), 0
        for alike in sorted(by_depth.values(), key=min):
            some = [plan for bound, plan in sorted(alike) if bound < self.best_s]
            if not some or (worse == PATIENCE and not self.thorough):
                continue
            worse += 1
            seconds = makespans(problem.priced, some)
            index = int(seconds.argmin())
            least = min(least, float(seconds[index]))
            if seconds[index] < self.best_s:
                self.best, self.best_s = (problem, some[index]), float(seconds[index])
                worse = 0
        key = (problem.priced.schedule, problem.priced.count)
        if least < self.rivals.get(key, float("inf")):
            self.rivals[key] = least
