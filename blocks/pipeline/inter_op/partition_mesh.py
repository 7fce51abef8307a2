"""``partition_mesh``: layers to stages, stages to submeshes, schedule and microbatches together.

Needs numpy, no torch.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from blocks._checks import check, check_count, check_positive, fail
from blocks.pipeline.inter_op.budget import Budget, budget
from blocks.pipeline.inter_op.closed_formula import closed_formula
from blocks.pipeline.inter_op.does_not_fit import why_not
from blocks.pipeline.inter_op.flow import flow_name
from blocks.pipeline.inter_op.inter_op_plan import InterOpPlan, PlannedStage
from blocks.pipeline.inter_op.makespans import makespans
from blocks.pipeline.inter_op.priced import Priced, Stage
from blocks.pipeline.inter_op.stage_table import StageSource, StageTable
from blocks.pipeline.inter_op.step_bound import bounds_by_depth, step_bounds
from blocks.pipeline.inter_op.submesh import SubmeshShape, cover

Source = StageSource | Callable[[int], StageSource]
"""Stage costs; or a function from the number of microbatches to them."""

Caps = int | float | Mapping[str, int | float] | None
"""Bytes of a device; by kind where there are several; None for no cap."""

Progress = Callable[[str, int, int], None]
"""Told what is being looked at, how many of how many are done."""


def partition_mesh(
    table: Source,
    num_hosts: int,
    devices_per_host: int,
    *,
    num_microbatches: int | Sequence[int],
    memory_cap_bytes: Caps = None,
    schedules: Sequence[str] = ("one_f_one_b", "gpipe", "zb_h1"),
    kinds: Sequence[str] = (),
    idle_devices: bool = False,
    max_stages: int | None = None,
    epsilon: int | float = 0.0,
    progress: Progress | None = None,
) -> InterOpPlan:
    """The partition of layers and devices whose step is simulated to be fastest.

    For every schedule and number of microbatches the closed formula (Alpa's, with transfers, what
    is done once a step, and the memory of microbatches in flight) is minimised exactly over all
    partitions; the plans met on the way are simulated on the real schedule, and the best simulated
    one is the answer. Combinations whose bound on any plan is no better are left out.

    Args:
        table: what stages cost; where the size of a microbatch follows from their number, a
            function from that number.
        num_hosts, devices_per_host: the cluster.
        num_microbatches: of a step; several to choose from.
        memory_cap_bytes: of a device.
        schedules: names of ``FLOWS``; ``1f1b`` is ``one_f_one_b``.
        kinds: kind of every host where there are several.
        idle_devices: whether a plan may leave devices out.
        max_stages: most stages of a plan.
        epsilon: share by which the closed formula may miss its least value; 0 is exact.
        progress: called as the search goes on.

    Raises:
        DoesNotFit: no plan keeps to the limits, with the limit and the shortfall.
        ValueError: an argument out of range.

    Reference: Zheng et al. 2022, Alpa, section 5.2.
    """
    counts = [num_microbatches] if isinstance(num_microbatches, int) else [*num_microbatches]
    check(bool(counts), "num_microbatches", "at least one number", counts)
    for count in counts:
        check_count("num_microbatches", count)
    check_positive("max_stages", max_stages)
    check(0 <= epsilon < 1, "epsilon", "a share of at least 0", epsilon)
    names = [*dict.fromkeys(flow_name(name) for name in schedules)]
    check(bool(names), "schedules", "at least one", names)
    problems = []
    for count in counts:
        stages = _table(table, count)
        devices = budget(stages.shapes, num_hosts, devices_per_host, kinds, whole=not idle_devices)
        caps = _caps(memory_cap_bytes, stages.shapes)
        most = min(max_stages or len(stages.bounds), len(stages.bounds) - 1)
        for name in names:
            problems.append(_Problem(Priced(stages, name, count, caps), devices, most, caps))
    search = _Search(problems, epsilon, progress)
    best = search.run()
    if best is None:
        raise why_not([(p.priced, p.max_stages) for p in problems], problems[0].devices)
    problem, plan, makespan_s = best
    shapes = [problem.priced.table.shapes[stage[2]] for stage in plan]
    places = cover(shapes, num_hosts, devices_per_host, kinds=kinds)
    return InterOpPlan(
        stages=_planned(problem.priced, plan, places),
        schedule=problem.priced.schedule,
        num_microbatches=problem.priced.count,
        makespan_s=makespan_s,
        formula_s=problem.priced.formula_s(plan),
        bound_s=min(search.bound_s, makespan_s),
        rivals=tuple(search.rivals),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Problem:
    """One schedule with one number of microbatches."""

    priced: Priced
    devices: Budget
    max_stages: int
    caps: Sequence[int | float]

    def of_depth(self, depth: int) -> "_Problem":
        """The same with the memory of a plan of exactly so many stages."""
        priced = self.priced
        deep = Priced(priced.table, priced.schedule, priced.count, self.caps, depth)
        return dataclasses.replace(self, priced=deep, max_stages=depth)


class _Search:
    """Problems from the most promising on, until none can be better than what was found."""

    def __init__(
        self, problems: Sequence[_Problem], epsilon: int | float, progress: Progress | None
    ) -> None:
        self.problems, self.epsilon = problems, epsilon
        self.progress = progress or (lambda what, done, of: None)
        self.best: tuple[_Problem, tuple[Stage, ...], float] | None = None
        self.bound_s = float("inf")
        self.rivals: list[tuple[str, int, float]] = []

    @property
    def best_s(self) -> float:
        return float("inf") if self.best is None else self.best[2]

    def run(self) -> tuple[_Problem, tuple[Stage, ...], float] | None:
        bounded = []
        for done, problem in enumerate(self.problems):
            self.progress("bounds", done, len(self.problems))
            chains = step_bounds(problem.priced, problem.devices, problem.max_stages)
            depths = bounds_by_depth(chains)
            if depths:
                bounded.append((min(depths.values()), done, problem, depths))
        bounded.sort(key=lambda found: found[:2])
        self.bound_s = bounded[0][0] if bounded else float("inf")
        for done, (bound, _, problem, depths) in enumerate(bounded):
            self.progress("partitions", done, len(bounded))
            if bound < self.best_s:
                self._solve(problem, depths)
        return self.best

    def _solve(self, problem: _Problem, depths: dict[int, float]) -> None:
        """The plans of one problem that the closed formula finds, simulated."""
        if not problem.priced.flow.follows_depth:
            self._simulate(problem)
            return
        for depth in sorted(depths, key=lambda depth: depths[depth]):
            if depths[depth] < self.best_s:
                self._simulate(problem.of_depth(depth))

    def _simulate(self, problem: _Problem) -> None:
        priced = problem.priced
        found = closed_formula(
            priced, problem.devices, epsilon=self.epsilon, max_stages=problem.max_stages
        )
        by_depth: dict[int, list[tuple[Stage, ...]]] = {}
        for choice in found.choices:
            by_depth.setdefault(len(choice.stages), []).append(choice.stages)
        least = float("inf")
        for plans in by_depth.values():
            seconds = makespans(priced, plans)
            index = int(seconds.argmin())
            least = min(least, float(seconds[index]))
            if seconds[index] < self.best_s:
                self.best = (problem, plans[index], float(seconds[index]))
        if by_depth:
            self.rivals.append((priced.schedule, priced.count, least))


def _table(table: Source, count: int) -> StageTable:
    source = table if isinstance(table, StageSource) else table(count)
    if isinstance(source, StageTable):
        return source
    check(isinstance(source, StageSource), "table", "a source of stage costs", type(source))
    return source.at(range(source.num_layers + 1))


def _caps(caps: Caps, shapes: Sequence[SubmeshShape]) -> list[float]:
    """Of every shape."""
    if caps is None:
        return [float("inf")] * len(shapes)
    if not isinstance(caps, Mapping):
        check_positive("memory_cap_bytes", caps, "pass None for no cap")
        return [float(caps)] * len(shapes)
    missing = {shape.kind for shape in shapes} - set(caps)
    if missing:
        raise fail("memory_cap_bytes", f"a number for each kind, {sorted(missing)} too", [*caps])
    return [float(caps[shape.kind]) for shape in shapes]


def _planned(
    priced: Priced, plan: Sequence[Stage], places: Sequence[tuple[int, ...]]
) -> tuple[PlannedStage, ...]:
    table, depth = priced.table, len(plan)
    stages = []
    for index, ((k, i, m, o), devices) in enumerate(zip(plan, places, strict=True)):
        send_s = return_s = 0.0
        if index + 1 < depth:
            hop = (i, m, plan[index + 1][2])
            send_s, return_s = float(table.send_s[hop]), float(table.return_s[hop])
        stages.append(
            PlannedStage(
                first=table.bounds[k],
                stop=table.bounds[i],
                shape=table.shapes[m],
                devices=devices,
                option=table.options[o],
                cost=table.cost(k, i, m, o),
                in_flight=priced.in_flight(depth - index, depth),
                send_s=send_s,
                return_s=return_s,
            )
        )
    return tuple(stages)
