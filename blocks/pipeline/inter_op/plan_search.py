"""``PlanSearch``: the best simulated plan of several problems. Needs numpy, no torch."""

from collections.abc import Callable, Sequence

from blocks.pipeline.inter_op.best_first import best_first
from blocks.pipeline.inter_op.closed_formula import Plan, closed_formula
from blocks.pipeline.inter_op.formula import Formula, alpa
from blocks.pipeline.inter_op.makespans import makespans
from blocks.pipeline.inter_op.neighbours import neighbours
from blocks.pipeline.inter_op.problem import Problem

MANY, COARSER = 32, 4
"""Bounds above which a coarser partition is sought first, and how many are one then."""

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
        self.progress = progress or (lambda what, done, of: None)
        self.best: tuple[Problem, Plan] | None = None
        self.best_s = self.bound_s = float("inf")
        self.rivals: dict[tuple[str, int], float] = {}

    def start(self) -> None:
        """A good plan from few bounds, where there are many: all that follows is then cut short."""
        num_bounds = max(len(problem.priced.table.bounds) for problem in self.problems)
        if num_bounds <= MANY:
            return
        fewer = {id(p.priced.table): p.priced.table for p in self.problems}
        for key, table in fewer.items():
            fewer[key] = table.at([*table.bounds[:-1:COARSER], table.bounds[-1]])
        coarse = [problem.on(fewer[id(problem.priced.table)]) for problem in self.problems]
        search = PlanSearch(coarse, 0.01, 0, self.progress)
        search.start()
        search.run()
        if search.best is None:
            return
        found, plan = search.best
        index = next(n for n, problem in enumerate(self.problems) if found.same(problem))
        problem = self.problems[index]
        numbers = {bound: n for n, bound in enumerate(problem.priced.table.bounds)}
        few = found.priced.table.bounds
        plan = tuple((numbers[few[k]], numbers[few[i]], m, o) for k, i, m, o in plan)
        depth = len(plan) if problem.priced.flow.follows_depth else None
        self.best, self.best_s = (problem.of_depth(depth), plan), search.best_s

    def run(self) -> None:
        """Bounds, then formulas, then a proof."""
        bounded: list[tuple[float, int, Problem]] = []
        for done, problem in enumerate(self.problems):
            self.progress("bounds", done, len(self.problems))
            found = problem.bounds(self.best_s)
            self._simulate(problem, found.plans)
            for depth in problem.depths(found.totals):
                deep = problem.of_depth(depth)
                bound = found.totals[depth] if depth else min(found.totals.values())
                bounded.append((bound, len(bounded), deep))
        bounded.sort(key=lambda found: found[:2])
        left = []
        for done, (bound, number, problem) in enumerate(bounded):
            self.progress("partitions", done, len(bounded))
            if bound < self.best_s:
                left.append((max(bound, self._solve(problem)), number, problem))
        self._polish()
        left.sort(key=lambda found: found[:2])
        for done, (bound, _, problem) in enumerate(left):
            self.progress("proof", done, len(left))
            if bound < self.best_s:
                bound = max(bound, self._prove(problem, len(left) - done))
            self.bound_s = min(self.bound_s, bound)
        self.bound_s = min(self.bound_s, self.best_s)

    def _solve(self, problem: Problem) -> float:
        """What the formulas find, simulated; and what no plan of the problem comes below."""
        assert problem.trips is not None, "one problem for each number of stages"
        bound = self._minimise(problem, problem.trips, below=self.best_s)
        if bound < self.best_s:
            self._minimise(problem, alpa(problem.priced))
        return bound

    def _minimise(
        self, problem: Problem, formula: Formula, *, below: int | float = float("inf")
    ) -> float:
        """The plans with the least formula, simulated; and its bound."""
        known = [self.best[1]] if self.best is not None and problem.same(self.best[0]) else []
        found = closed_formula(
            formula,
            problem.devices,
            epsilon=self.epsilon,
            max_stages=problem.max_stages,
            known=known,
            below=below,
        )
        self._simulate(problem, [choice.stages for choice in found.choices])
        return found.bound_s

    def _polish(self) -> None:
        """Moves to the best neighbour of the best plan while there is a better one."""
        for _ in range(MAX_MOVES):
            if self.best is None:
                return
            (problem, plan), before = self.best, self.best_s
            self._simulate(problem, list(neighbours(problem.priced, plan)))
            if self.best_s >= before:
                return

    def _prove(self, problem: Problem, problems_left: int) -> float:
        """Looks for better plans one by one; what is left has at least this bound."""
        effort = self.effort // problems_left
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
        least = float("inf")
        for alike in sorted(by_depth.values(), key=min):
            some = [plan for bound, plan in sorted(alike) if bound < self.best_s]
            if not some:
                continue
            seconds = makespans(problem.priced, some)
            index = int(seconds.argmin())
            least = min(least, float(seconds[index]))
            if seconds[index] < self.best_s:
                self.best, self.best_s = (problem, some[index]), float(seconds[index])
        key = (problem.priced.schedule, problem.priced.count)
        if least < self.rivals.get(key, float("inf")):
            self.rivals[key] = least
